//! The replicas of this server, and what becomes of what they want done.

use std::collections::{BTreeMap, BTreeSet};

use mdm_api::config::PgConfig;
use mdm_api::epoch::Nanos;
use mdm_api::ids::{DeviceId, PgId, ProcessIncarnation};
use sds_api::peer::{PeerFrame, PeerMessage};
use sds_replica::{Context, Event as ReplicaEvent, MemberHome, Replica, Role, StoreRequest, Token};

use crate::action::{Action, Severity};
use crate::devices::Stage;
use crate::shard::{Shard, Work};
use crate::stores::Outcome;

/// What a replica was last told of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) config: PgConfig,
    pub(crate) min_isr: u8,
    pub(crate) homes: Vec<MemberHome>,
}

/// A replica, and what it has been told.
pub(crate) struct Group {
    pub(crate) replica: Replica,
    deadline: Nanos,
    pub(crate) told: Option<Told>,
    /// Members to which it was told that there is a connection, and to which process.
    pub(crate) connected: BTreeMap<DeviceId, ProcessIncarnation>,
}

/// All replicas, and when each wants to be woken.
#[derive(Default)]
pub(crate) struct Groups {
    all: BTreeMap<(PgId, DeviceId), Group>,
    deadlines: BTreeSet<(Nanos, PgId, DeviceId)>,
}

impl Groups {
    pub(crate) fn deadline(&self) -> Nanos {
        self.deadlines.first().map_or(Nanos::NEVER, |(at, ..)| *at)
    }

    /// A replica that is due. It has a new deadline once it has been stepped.
    pub(crate) fn pop_due(&mut self, now: Nanos) -> Option<(PgId, DeviceId)> {
        let (at, pg, device) = *self.deadlines.first()?;
        if at > now {
            return None;
        }
        self.deadlines.pop_first();
        if let Some(group) = self.all.get_mut(&(pg, device)) {
            group.deadline = Nanos::NEVER;
        }
        Some((pg, device))
    }

    pub(crate) fn get(&self, pg: PgId, device: DeviceId) -> Option<&Group> {
        self.all.get(&(pg, device))
    }

    pub(crate) fn get_mut(&mut self, pg: PgId, device: DeviceId) -> Option<&mut Group> {
        self.all.get_mut(&(pg, device))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PgId, DeviceId, &Group)> {
        self.all.iter().map(|((pg, device), group)| (*pg, *device, group))
    }

    pub(crate) fn keys(&self) -> Vec<(PgId, DeviceId)> {
        self.all.keys().copied().collect()
    }

    /// The replicas of one group, of which this server has seldom more than one.
    pub(crate) fn of_pg(&self, pg: PgId) -> Vec<DeviceId> {
        let range = (pg, DeviceId(0))..=(pg, DeviceId(u64::MAX));
        self.all.range(range).map(|((_, device), _)| *device).collect()
    }

    pub(crate) fn insert(&mut self, pg: PgId, device: DeviceId, replica: Replica) {
        let group = Group { replica, deadline: Nanos::NEVER, told: None, connected: BTreeMap::new() };
        self.all.insert((pg, device), group);
    }

    fn remove(&mut self, pg: PgId, device: DeviceId) -> Option<Group> {
        let group = self.all.remove(&(pg, device))?;
        self.deadlines.remove(&(group.deadline, pg, device));
        Some(group)
    }

    fn set_deadline(&mut self, pg: PgId, device: DeviceId, context: &Context) {
        let Some(group) = self.all.get_mut(&(pg, device)) else { return };
        let deadline = group.replica.deadline(context);
        if deadline != group.deadline {
            self.deadlines.remove(&(group.deadline, pg, device));
            group.deadline = deadline;
            if deadline != Nanos::NEVER {
                self.deadlines.insert((deadline, pg, device));
            }
        }
    }
}

impl Shard {
    /// Gives one replica one event and carries out what it wants.
    pub(crate) fn step_replica(&mut self, pg: PgId, device: DeviceId, event: ReplicaEvent, out: &mut Vec<Action>) {
        let (Some(group), Some(context)) = (self.groups.get_mut(pg, device), self.context.as_mut()) else {
            if let ReplicaEvent::Client { client, .. } = event {
                self.reply(client, Err(sds_api::client::ClientError::Retry), out);
            }
            return;
        };
        if self.stepped.last() != Some(&(pg, device)) {
            self.stepped.push((pg, device));
        }
        let mut actions = std::mem::take(&mut self.replica_actions);
        group.replica.step(self.now, event, context, &mut actions);
        self.groups.set_deadline(pg, device, context);
        for action in actions.drain(..) {
            self.carry_out(pg, device, action, out);
        }
        self.replica_actions = actions;
    }

    fn carry_out(&mut self, pg: PgId, device: DeviceId, action: sds_replica::Action, out: &mut Vec<Action>) {
        use sds_replica::Action as Wanted;
        match action {
            Wanted::Send(message) => self.send(message, out),
            Wanted::Store { token, request } => self.ask_store(pg, device, token, request),
            Wanted::Reply { client, result } => self.reply(client, result, out),
            Wanted::Propose(change) => self.propose(change, out),
            // The map is pushed as it changes; there is nobody to ask who would know sooner.
            Wanted::WantMap { .. } => self.counters.map_wanted += 1,
            Wanted::Fenced { fence, .. } => self.fences.confirmed(fence, pg, device),
            Wanted::Dropped { vtree } => {
                let term = self.groups.get(pg, device).and_then(|g| g.told.as_ref()).map(|told| told.config.term);
                self.drops.done(vtree, pg, term.unwrap_or_default());
            }
            Wanted::Gone => self.end_group(pg, device, out),
            Wanted::BadBlock { layer, block, repaired } => {
                self.counters.bad_blocks += 1;
                self.counters.repaired_blocks += u64::from(repaired);
                let severity = if repaired { Severity::Warning } else { Severity::Error };
                let what = if repaired { "repaired from a peer" } else { "no good copy was found yet" };
                let text = format!("group {pg}, device {device}: block {block} of {:?} is bad: {what}", layer.chunk);
                out.push(Action::notice(severity, text));
            }
        }
    }

    /// To the replica on another device: of this server at once, else through its server.
    fn send(&mut self, message: PeerMessage, out: &mut Vec<Action>) {
        let Some(home) = self.map.device(message.to).map(|device| device.sds) else { return };
        if home == self.settings.sds {
            let (pg, device) = (message.pg, message.to);
            self.work.push_back(Work::Replica { pg, device, event: ReplicaEvent::Peer(message) });
        } else if self.peers.is_up(home) {
            self.counters.peer_messages += 1;
            out.push(Action::SendPeer { sds: home, frame: PeerFrame::Replica(message) });
        }
    }

    fn ask_store(&mut self, pg: PgId, device: DeviceId, token: Token, request: StoreRequest) {
        let Some(Stage::Open(open)) = self.devices.get_mut(&device).map(|slot| &mut slot.stage) else { return };
        if matches!(request, StoreRequest::Append { .. }) {
            self.throttle.served(self.now);
        }
        let takes_space = matches!(request, StoreRequest::Append { .. } | StoreRequest::Install { .. });
        open.store.submit(self.now, pg, token, request, &mut self.outcomes);
        self.queue_outcomes(device);
        if takes_space {
            self.share_out(device);
        }
    }

    /// Something came out of a store.
    pub(crate) fn store_outcome(&mut self, device: DeviceId, outcome: Outcome, out: &mut Vec<Action>) {
        match outcome {
            Outcome::Disk(request) => {
                if let Some(slot) = self.devices.get_mut(&device) {
                    slot.outbox.push(request);
                    self.touched.insert(device);
                }
            }
            Outcome::Replica { pg, token, result } => {
                self.step_replica(pg, device, ReplicaEvent::Store { token, result }, out);
            }
            Outcome::WantState(pg) => self.step_replica(pg, device, ReplicaEvent::WantState, out),
            Outcome::BadBlock { pg, layer, block } => {
                self.step_replica(pg, device, ReplicaEvent::BadBlock { layer, block }, out);
            }
            Outcome::Damaged { damage } => {
                out.push(Action::notice(Severity::Warning, format!("device {device}: {damage}")));
            }
            outcome @ Outcome::Entry { .. } => self.entry_loaded(device, outcome, out),
            Outcome::Settled => {
                let text = format!("device {device}: its copies are in line with their peers again");
                out.push(Action::notice(Severity::Information, text));
            }
            Outcome::Failed { reason } => self.device_failed(device, reason, out),
        }
    }

    /// Makes the replica of a group on a device, from what its store has kept.
    pub(crate) fn begin_group(&mut self, pg: PgId, device: DeviceId) {
        let (Some(incarnation), Some(context)) = (self.incarnation(), self.context.as_mut()) else { return };
        let Some(Stage::Open(open)) = self.devices.get_mut(&device).map(|slot| &mut slot.stage) else { return };
        let recovered = open.recovered.remove(&pg);
        let identity = sds_replica::Identity { pg, device, server: self.settings.sds, incarnation };
        self.groups.insert(pg, device, Replica::new(identity, recovered, context));
    }

    /// The replica is no more; whoever waits for it tries elsewhere.
    pub(crate) fn end_group(&mut self, pg: PgId, device: DeviceId, out: &mut Vec<Action>) {
        let Some(mut group) = self.groups.remove(pg, device) else { return };
        if let Some(context) = self.context.as_mut() {
            group.replica.close(context);
        }
        self.fences.forget(pg, device);
        self.abandon_requests(pg, device, out);
    }

    pub(crate) fn end_groups_of(&mut self, device: DeviceId, out: &mut Vec<Action>) {
        for (pg, on) in self.groups.keys() {
            if on == device {
                self.end_group(pg, device, out);
            }
        }
    }

    /// Once the copies of a device are in line with their peers, what its super block remembers of the opening is cleared.
    pub(crate) fn settle_verdicts(&mut self) {
        let devices: Vec<DeviceId> = self.devices.keys().copied().collect();
        for device in devices {
            let is_waiting = self.devices.get(&device).and_then(|slot| slot.open()).is_some_and(|open| !open.settling);
            if !is_waiting || !self.is_usable(device) || self.map.device(device).is_none_or(|record| record.suspect) {
                continue;
            }
            let is_in_line = |group: &Group| {
                let status = group.replica.status();
                status.complete && !status.suspect && matches!(status.role, Role::Primary | Role::Secondary)
            };
            let mine = |(_, on, group): (PgId, DeviceId, &Group)| on != device || is_in_line(group);
            let Some(Stage::Open(open)) = self.devices.get_mut(&device).map(|slot| &mut slot.stage) else { continue };
            if open.recovered.is_empty() && self.groups.iter().all(mine) {
                open.settling = true;
                open.store.settle(self.now, &mut self.outcomes);
                self.queue_outcomes(device);
            }
        }
    }
}
