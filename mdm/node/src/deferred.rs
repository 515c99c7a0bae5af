//! Answers that wait for more than a commit: a device to be formatted, a fence to hold, a volume to be gone.
//!
//! Volatile and on the leader only: a client whose leader is lost asks the next one under the same request id, gets the
//! same place in line, and never a false "done". Each waits for a state that the log will reach, or for its time to be up.

use mdm_api::command::CommandAnswer;
use mdm_api::control::Response;
use mdm_api::epoch::{AttachGeneration, Nanos, Revision};
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::ids::{DeviceId, SdcId, SdsId, VolumeId};
use mdm_api::model::{DeviceState, Mapping};
use mdm_api::ticket::Ticket;
use mdm_core::reconcile::fence::waiting_for;
use mdm_core::{Observed, State};

use crate::event::RequestKey;

/// Formatting zeroes a journal of up to 4 GiB.
const DEVICE_TIMEOUT_MS: u64 = 120_000;
/// A fence waits for re-appointments: a few seconds; past this somebody has to look.
const FENCE_TIMEOUT_MS: u64 = 30_000;
/// A removed volume's space is given back by itself: there is no need to wait for all of it.
const REMOVAL_TIMEOUT_MS: u64 = 10_000;
/// How long a ticket opens.
const TICKET_S: u64 = 3600;
/// Clocks of hosts may differ by this much: a ticket begins to be valid that much earlier.
const TICKET_SKEW_S: u64 = 300;
/// Answers that may wait at a time; beyond it a request is refused as busy.
const WAITING_MAX: usize = 8192;

/// Servers that a refusal names at the most.
const NAMED_MAX: usize = 8;

/// What an answer waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// The device is in use.
    DeviceReady { device: DeviceId },
    /// The mappings are gone: every server refuses the clients (I17).
    Unmapped { volume: VolumeId, sdcs: Vec<SdcId>, fence_revision: Revision },
    /// The volume's record is gone.
    Removed { volume: VolumeId },
    /// The mapping's older generations are fenced, so that this opener may use it.
    Usable { volume: VolumeId, sdc: SdcId, opener: u64 },
}

/// One that waits.
#[derive(Clone, Debug)]
struct Waiting {
    key: RequestKey,
    until: Until,
    deadline: Nanos,
    /// The answer, where it does not follow from the state.
    answer: Option<CommandAnswer>,
}

/// A decided answer.
pub(crate) type Decided = (RequestKey, Result<Box<Response>, CommandError>);

/// All that wait.
#[derive(Default)]
pub(crate) struct Deferred {
    waiting: Vec<Waiting>,
}

/// Whether a command's answer waits, and for what.
pub(crate) fn waits_for(answer: &CommandAnswer) -> Option<Until> {
    match answer {
        CommandAnswer::DeviceRecorded { id, .. } => Some(Until::DeviceReady { device: *id }),
        CommandAnswer::Unmapping { volume, sdcs, fence_revision } => {
            Some(Until::Unmapped { volume: *volume, sdcs: sdcs.clone(), fence_revision: *fence_revision })
        }
        _ => None,
    }
}

impl Deferred {
    /// Puts an answer in line. Gives the refusal if the line is too long.
    pub(crate) fn wait(
        &mut self,
        key: RequestKey,
        until: Until,
        answer: Option<CommandAnswer>,
        now: Nanos,
    ) -> Result<(), CommandError> {
        if self.waiting.len() >= WAITING_MAX {
            return Err(CommandError::new(ErrorCode::Busy, "Too many requests wait already", "try again in a moment"));
        }
        let timeout_ms = match &until {
            Until::DeviceReady { .. } => DEVICE_TIMEOUT_MS,
            Until::Unmapped { .. } | Until::Usable { .. } => FENCE_TIMEOUT_MS,
            Until::Removed { .. } => REMOVAL_TIMEOUT_MS,
        };
        self.waiting.push(Waiting { key, until, deadline: now.plus_ms(timeout_ms), answer });
        Ok(())
    }

    /// A connection ended: nobody waits there.
    pub(crate) fn forget(&mut self, gone: impl Fn(RequestKey) -> bool) {
        self.waiting.retain(|waiting| !gone(waiting.key));
    }

    /// This member does not lead any more: who waits must ask elsewhere.
    pub(crate) fn take_all(&mut self) -> Vec<RequestKey> {
        std::mem::take(&mut self.waiting).into_iter().map(|waiting| waiting.key).collect()
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// A server refused a device: who waits for it is told why.
    pub(crate) fn device_refused(&mut self, device: DeviceId, reason: &str, out: &mut Vec<Decided>) {
        let (told, rest) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| waiting.until == Until::DeviceReady { device });
        self.waiting = rest;
        let told: Vec<Waiting> = told;
        out.extend(told.into_iter().map(|waiting| (waiting.key, Err(refused_device(reason)))));
    }

    /// Takes out what the state has decided, or time has.
    pub(crate) fn decide(
        &mut self,
        state: &State,
        observed: &Observed,
        now: Nanos,
        wall_s: u64,
        out: &mut Vec<Decided>,
    ) {
        self.waiting.retain(|waiting| {
            let decided = decide(state, waiting, wall_s)
                .or_else(|| (now >= waiting.deadline).then(|| time_out(state, observed, waiting)));
            match decided {
                None => true,
                Some(result) => {
                    out.push((waiting.key, result));
                    false
                }
            }
        });
    }
}

fn decide(state: &State, waiting: &Waiting, wall_s: u64) -> Option<Result<Box<Response>, CommandError>> {
    match &waiting.until {
        Until::DeviceReady { device } => match state.devices().get(device) {
            None => Some(Err(refused_device("its server refused it, or it was removed meanwhile"))),
            Some(record) => match record.state {
                DeviceState::Adding => None,
                DeviceState::Normal | DeviceState::Removing => Some(Ok(command_answer(waiting))),
                DeviceState::Failed => Some(Err(refused_device(record.error.as_deref().unwrap_or("it failed")))),
            },
        },
        Until::Unmapped { volume, sdcs, .. } => {
            // I17: a mapping that was made anew meanwhile counts once what was before it is fenced.
            let is_gone = |sdc: &SdcId| {
                state.mappings().get(&(*volume, *sdc)).is_none_or(|mapping| !mapping.revoked && mapping.fenced)
            };
            sdcs.iter().all(is_gone).then(|| Ok(command_answer(waiting)))
        }
        Until::Removed { volume } => (!state.volumes().contains_key(volume)).then(|| Ok(command_answer(waiting))),
        Until::Usable { volume, sdc, opener } => usable(state, *volume, *sdc, *opener, wall_s),
    }
}

/// The credential of a mapping, once nothing older can write any more (I17).
fn usable(
    state: &State,
    volume: VolumeId,
    sdc: SdcId,
    opener: u64,
    wall_s: u64,
) -> Option<Result<Box<Response>, CommandError>> {
    let not_mapped = || {
        let message = format!("The volume {volume} is not mapped to this SDC");
        Some(Err(CommandError::new(ErrorCode::NotMapped, message, "map it with `scli volume map`")))
    };
    let Some(mapping) = state.mappings().get(&(volume, sdc)).filter(|mapping| !mapping.revoked) else {
        return not_mapped();
    };
    if mapping.opened_by != opener || opener == 0 {
        let message = "The mapping was opened anew by another start of the SDC".to_owned();
        return Some(Err(CommandError::new(ErrorCode::Stale, message, "open it again")));
    }
    if !state.mapping_is_usable(volume, sdc, opener) {
        return None;
    }
    let Some(ticket) = ticket(state, mapping, wall_s) else { return not_mapped() };
    Some(ticket)
}

fn ticket(state: &State, mapping: &Mapping, wall_s: u64) -> Option<Result<Box<Response>, CommandError>> {
    let system = state.system()?.system.id;
    let record = state.volumes().get(&mapping.volume)?;
    let pool = state.storage_pools().get(&record.pool)?;
    let Some(key) = state.signing_key(pool.protection_domain) else {
        let message = "The protection domain has no key to sign tickets under".to_owned();
        return Some(Err(CommandError::new(ErrorCode::Internal, message, "")));
    };
    let ticket = Ticket {
        key: key.id,
        system,
        volume: mapping.volume,
        pool: record.pool,
        sdc: mapping.sdc,
        access: mapping.access,
        generation: AttachGeneration(mapping.generation.0),
        // A server that is behind this has not heard of the generation yet, and waits for its map.
        revision: mapping.fence_revision.max(Revision(mapping.generation.0)),
        expires_s: wall_s.saturating_add(TICKET_S),
        not_before_s: wall_s.saturating_sub(TICKET_SKEW_S),
    };
    Some(Ok(Box::new(Response::Credential(ticket.issue(key)))))
}

fn command_answer(waiting: &Waiting) -> Box<Response> {
    Box::new(Response::Command(waiting.answer.clone().unwrap_or(CommandAnswer::Done)))
}

fn refused_device(reason: &str) -> CommandError {
    CommandError::new(ErrorCode::DeviceUnusable, format!("The device cannot be used: {reason}"), "then add it again")
}

fn time_out(state: &State, observed: &Observed, waiting: &Waiting) -> Result<Box<Response>, CommandError> {
    match &waiting.until {
        Until::DeviceReady { device } => Err(CommandError::new(
            ErrorCode::TimedOut,
            format!("The device {device} was recorded, but its server has not said yet that it is ready"),
            "it goes on by itself; look with `scli device list`, and at the log of the SDS",
        )),
        // It is out of everybody's reach already; its space comes back by itself.
        Until::Removed { .. } => Ok(command_answer(waiting)),
        Until::Unmapped { volume, fence_revision, .. } => Err(not_fenced(state, observed, *volume, *fence_revision)),
        Until::Usable { volume, sdc, .. } => {
            let fence = state.mappings().get(&(*volume, *sdc)).map_or(Revision(0), |mapping| mapping.fence_revision);
            Err(not_fenced(state, observed, *volume, fence))
        }
    }
}

/// F26: never "done" while a server may still take the client's writes: names who is waited for.
fn not_fenced(state: &State, observed: &Observed, volume: VolumeId, fence: Revision) -> CommandError {
    let waiting = waiting_for(state, observed, volume, fence);
    let named = |id: &SdsId| state.sds().get(id).map_or_else(|| id.to_string(), |sds| format!("SDS {}", sds.name));
    let servers: Vec<String> = waiting.sds.iter().take(NAMED_MAX).map(named).collect();
    let more = if waiting.sds.len() > NAMED_MAX { " and others" } else { "" };
    let whom = if servers.is_empty() { "the leader to record it".to_owned() } else { servers.join(", ") };
    CommandError::new(
        ErrorCode::NotFenced,
        format!("Not fenced yet: waiting for {whom}{more} ({} placement groups)", waiting.pgs),
        "it goes on by itself; bring these servers back or remove them, then ask again",
    )
}
