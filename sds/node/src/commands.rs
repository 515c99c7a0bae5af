//! What this server asks of the metadata manager, until it has an answer.
//!
//! Proposals of replicas are asked once: replicas repeat them by themselves until a newer configuration is known. What
//! concerns the process and its devices is asked again until the system has said yes or no.

use std::collections::BTreeMap;

use mdm_api::command::{CommandAnswer, DaemonCommand};
use mdm_api::config::{PgChange, PgChangeKind};
use mdm_api::epoch::{Epoch, Nanos};
use mdm_api::ids::{DeviceId, PgId};

use crate::action::{Action, CommandId, Severity};
use crate::event::CommandFailure;
use crate::limits::{COMMAND_AGAIN_MS, PROPOSALS_MAX};
use crate::shard::{Process, Shard};

/// Why something was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Register,
    Present(DeviceId),
    Ready(DeviceId),
    Refuse(DeviceId, String),
    Fail(DeviceId, String),
    Change(PgId, Epoch, PgChangeKind),
}

/// What is open.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    next: u64,
    open: BTreeMap<CommandId, Purpose>,
    again: Vec<(Nanos, Purpose)>,
    proposals: usize,
}

impl Commands {
    pub(crate) fn deadline(&self) -> Nanos {
        self.again.iter().map(|(at, _)| *at).min().unwrap_or(Nanos::NEVER)
    }

    fn is_open(&self, purpose: &Purpose) -> bool {
        self.open.values().any(|open| open == purpose) || self.again.iter().any(|(_, waiting)| waiting == purpose)
    }
}

impl Shard {
    /// Asks, unless the same is asked already.
    pub(crate) fn command(&mut self, purpose: Purpose, out: &mut Vec<Action>) {
        if !self.commands.is_open(&purpose) {
            self.send_command(purpose, out);
        }
    }

    fn send_command(&mut self, purpose: Purpose, out: &mut Vec<Action>) {
        if purpose != Purpose::Register && self.incarnation().is_none() {
            // What is to be said in the name of a process is said once it has one.
            self.ask_again(purpose);
            return;
        }
        let Some(command) = self.command_for(&purpose) else { return };
        self.commands.next += 1;
        let id = CommandId(self.commands.next);
        self.commands.open.insert(id, purpose);
        out.push(Action::Command { id, command });
    }

    fn command_for(&self, purpose: &Purpose) -> Option<DaemonCommand> {
        let sds = self.settings.sds;
        if *purpose == Purpose::Register {
            let (nonce, addresses) = (self.settings.nonce, self.settings.addresses.clone());
            return Some(DaemonCommand::RegisterSds { sds, nonce, addresses, devices: self.presented_devices() });
        }
        let incarnation = self.incarnation()?;
        Some(match purpose {
            Purpose::Present(device) => {
                DaemonCommand::PresentDevice { sds, incarnation, device: self.presented_device(*device)? }
            }
            Purpose::Ready(device) => {
                DaemonCommand::DeviceReady { sds, incarnation, device: self.presented_device(*device)? }
            }
            Purpose::Refuse(device, reason) => {
                DaemonCommand::DeviceRefused { sds, incarnation, device: *device, reason: reason.clone() }
            }
            Purpose::Fail(device, reason) => {
                DaemonCommand::DeviceFailed { sds, incarnation, device: *device, reason: reason.clone() }
            }
            Purpose::Register | Purpose::Change(..) => return None,
        })
    }

    /// A replica proposes.
    pub(crate) fn propose(&mut self, change: PgChange, out: &mut Vec<Action>) {
        let purpose = Purpose::Change(change.pg, change.epoch, change.kind);
        if self.commands.proposals >= PROPOSALS_MAX || self.commands.open.values().any(|open| *open == purpose) {
            return;
        }
        self.commands.proposals += 1;
        self.commands.next += 1;
        let id = CommandId(self.commands.next);
        self.commands.open.insert(id, purpose);
        out.push(Action::Command { id, command: DaemonCommand::ChangePg(change) });
    }

    pub(crate) fn command_done(
        &mut self,
        id: CommandId,
        result: Result<CommandAnswer, CommandFailure>,
        out: &mut Vec<Action>,
    ) {
        let Some(purpose) = self.commands.open.remove(&id) else { return };
        match (purpose, result) {
            // Whatever came of it is in the map, or the replica asks again.
            (Purpose::Change(..), _) => self.commands.proposals = self.commands.proposals.saturating_sub(1),
            (Purpose::Register, Ok(CommandAnswer::SdsRegistered { incarnation, revision, refused })) => {
                self.registered(incarnation, revision, refused, out);
            }
            (purpose, Err(CommandFailure::Unknown)) => self.ask_again(purpose),
            (Purpose::Register, result) => {
                let text = match result {
                    Err(CommandFailure::Refused(error)) => error.to_string(),
                    other => format!("an answer to another question: {other:?}"),
                };
                self.complain(format!("the system does not take this server: {text}"), out);
                self.ask_again(Purpose::Register);
            }
            (Purpose::Present(device) | Purpose::Ready(device), Err(CommandFailure::Refused(error))) => {
                self.stop_device(device, format!("the system does not take the device: {error}"), out);
            }
            // The device is gone from the system, or failed there already: what was to be said is known.
            (Purpose::Refuse(..) | Purpose::Fail(..), Err(CommandFailure::Refused(error))) => {
                out.push(Action::notice(Severity::Information, format!("a report about a device is void: {error}")));
            }
            (Purpose::Present(_) | Purpose::Ready(_) | Purpose::Refuse(..) | Purpose::Fail(..), Ok(_)) => {}
        }
    }

    fn ask_again(&mut self, purpose: Purpose) {
        self.commands.again.push((self.now.plus_ms(COMMAND_AGAIN_MS), purpose));
    }

    /// Asks again what is due.
    pub(crate) fn retry_commands(&mut self, out: &mut Vec<Action>) {
        let now = self.now;
        let (due, later) = std::mem::take(&mut self.commands.again).into_iter().partition(|(at, _)| *at <= now);
        self.commands.again = later;
        let due: Vec<(Nanos, Purpose)> = due;
        for (_, purpose) in due {
            self.send_command(purpose, out);
        }
    }

    /// Says something once for as long as it stays the same.
    fn complain(&mut self, text: String, out: &mut Vec<Action>) {
        if self.last_complaint.as_ref() != Some(&text) {
            out.push(Action::notice(Severity::Error, text.clone()));
            self.last_complaint = Some(text);
        }
    }

    fn registered(
        &mut self,
        incarnation: mdm_api::ids::ProcessIncarnation,
        revision: mdm_api::epoch::Revision,
        refused: Vec<(DeviceId, String)>,
        out: &mut Vec<Action>,
    ) {
        self.process = Process::Registered { incarnation, revision };
        self.last_complaint = None;
        let text = format!("registered as process {incarnation} at revision {revision}");
        out.push(Action::notice(Severity::Information, text));
        for (device, reason) in refused {
            self.stop_device(device, format!("the system does not take the device: {reason}"), out);
        }
        self.map_moved(out);
    }
}
