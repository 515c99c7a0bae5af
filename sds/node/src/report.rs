//! What a server tells of itself: heartbeats for the metadata manager, figures for metrics.

use mdm_api::control::{DeviceReport, Heartbeat, ResyncReport, TailReport};
use mdm_api::epoch::Nanos;
use mdm_api::ids::{DeviceId, PgId};
use sds_api::block::AU_BYTES;
use sds_api::client::{ClientError, ClientOperation};
use sds_replica::Role;
use sds_store::request::{Counters as StoreCounters, Space};

use crate::shard::Shard;

/// Upper ends of the latency buckets in nanoseconds; one more bucket is for the rest.
const LATENCY_BOUNDS_NS: [u64; 12] = [
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    50_000_000,
    200_000_000,
    1_000_000_000,
    5_000_000_000,
];

/// Upper ends of the latency buckets of [`OperationFigures`], in nanoseconds.
pub fn latency_bounds_ns() -> &'static [u64] {
    &LATENCY_BOUNDS_NS
}

/// What clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Zeroing and trimming.
    Zero,
    /// Which blocks hold data.
    Status,
}

impl OperationKind {
    /// All of them, in the order of [`Figures::operations`].
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Zero, Self::Status];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Zero => "zero",
            Self::Status => "status",
        }
    }

    pub(crate) fn of(operation: &ClientOperation) -> Self {
        match operation {
            ClientOperation::Read { .. } => Self::Read,
            ClientOperation::Write { .. } => Self::Write,
            ClientOperation::Zero { .. } => Self::Zero,
            ClientOperation::Status { .. } => Self::Status,
        }
    }
}

/// Figures of one kind of operation since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperationFigures {
    /// Served.
    pub count: u64,
    /// Bytes asked for in them.
    pub bytes: u64,
    /// Nanoseconds from request to answer, summed.
    pub total_ns: u64,
    /// How many took at most each of [`latency_bounds_ns`] and more than the one before; the last: longer than all.
    pub buckets: [u64; LATENCY_BOUNDS_NS.len() + 1],
}

/// Counts since the start.
#[derive(Default)]
pub(crate) struct Counters {
    operations: [OperationFigures; 4],
    retries: u64,
    wrong_primary: u64,
    errors: u64,
    pub(crate) bad_blocks: u64,
    pub(crate) repaired_blocks: u64,
    pub(crate) device_failures: u64,
    pub(crate) peer_messages: u64,
    pub(crate) strange_messages: u64,
    pub(crate) map_wanted: u64,
}

impl Counters {
    pub(crate) fn served(&mut self, kind: OperationKind, bytes: u32, took_ns: u64) {
        let figures = &mut self.operations[kind as usize];
        figures.count += 1;
        figures.bytes += u64::from(bytes);
        figures.total_ns += took_ns;
        let bucket = LATENCY_BOUNDS_NS.iter().position(|bound| took_ns <= *bound);
        figures.buckets[bucket.unwrap_or(LATENCY_BOUNDS_NS.len())] += 1;
    }

    pub(crate) fn refused(&mut self, error: &ClientError) {
        match error {
            ClientError::Retry => self.retries += 1,
            ClientError::WrongPrimary(_) => self.wrong_primary += 1,
            _ => self.errors += 1,
        }
    }
}

/// A device, for metrics.
#[derive(Clone, Debug)]
pub struct DeviceFigures {
    /// Which.
    pub device: DeviceId,
    /// Where.
    pub path: String,
    /// Room and counters while it is open.
    pub store: Option<(Space, StoreCounters)>,
    /// Why it is of no use, if it is not.
    pub trouble: Option<String>,
}

/// Everything that metrics show.
#[derive(Clone, Debug)]
pub struct Figures {
    /// By kind, in the order of [`OperationKind::ALL`].
    pub operations: [OperationFigures; 4],
    /// Requests answered with "try again".
    pub retries: u64,
    /// Requests sent to the wrong server.
    pub wrong_primary: u64,
    /// Requests refused for other reasons.
    pub errors: u64,
    /// Requests under way.
    pub requests: usize,
    /// Clients with open volumes.
    pub clients: usize,
    /// Volumes open on connections.
    pub handles: usize,
    /// Connections to other servers that are up.
    pub peers: usize,
    /// Messages sent to replicas elsewhere.
    pub peer_messages: u64,
    /// Messages of replicas that are not where they should be.
    pub strange_messages: u64,
    /// Times a replica heard of a configuration that the map did not have yet.
    pub map_wanted: u64,
    /// Blocks without a good copy on the device that was read.
    pub bad_blocks: u64,
    /// Of these, those that a peer's copy took the place of.
    pub repaired_blocks: u64,
    /// Devices that failed.
    pub device_failures: u64,
    /// Replicas by role: idle, learner, secondary, activating, primary, failed.
    pub roles: [usize; 6],
    /// Layers still to copy to learners of groups led here.
    pub resync_layers_left: u64,
    /// Bytes copied to them.
    pub resync_bytes: u64,
    /// Bytes copied to learners since the start.
    pub resync_bytes_total: u64,
    /// Devices.
    pub devices: Vec<DeviceFigures>,
    /// The map's revision.
    pub map_revision: u64,
    /// True once this process has registered and follows a current map.
    pub in_service: bool,
}

impl Shard {
    /// What is reported to every MDM, every `heartbeat_ms`.
    pub fn heartbeat(&self, now: Nanos) -> Heartbeat {
        let mut heartbeat = Heartbeat {
            sds: self.settings.sds,
            incarnation: self.incarnation(),
            map_revision: self.map.revision(),
            fenced_through: self.fences.through,
            dropped: self.dropped(),
            devices: self.device_reports(),
            tails: Vec::new(),
            resync: Vec::new(),
            unreachable: self.peers.unreachable(now),
            leases_with: self.peers.leases_with(now, self.settings.timing.lease_ms),
        };
        for (pg, device, group) in self.groups.iter() {
            let config = self.map.pg(pg);
            let is_dark = config.is_some_and(|config| config.primary.is_none() && config.isr.contains(&device));
            let is_led = config.is_some_and(|config| config.primary == Some(device) && !config.learners.is_empty());
            if is_dark {
                heartbeat.tails.push(TailReport { pg, device, tail: group.replica.status().last });
            } else if is_led {
                let status = group.replica.status();
                if status.role == Role::Primary {
                    heartbeat.resync.push(ResyncReport {
                        pg,
                        chunks_total: status.resync.iter().map(|learner| learner.layers_total).sum(),
                        chunks_done: status.resync.iter().map(|l| l.layers_total.saturating_sub(l.layers_left)).sum(),
                        bytes_done: status.resync.iter().map(|learner| learner.bytes_copied).sum(),
                    });
                }
            }
        }
        heartbeat
    }

    /// The replicas of this process: group, device, status.
    pub fn replicas(&self) -> impl Iterator<Item = (PgId, DeviceId, sds_replica::Status)> {
        self.groups.iter().map(|(pg, device, group)| (pg, device, group.replica.status()))
    }

    /// Replicas that had an event in the last step; one may be named more than once.
    pub fn stepped(&self) -> &[(PgId, DeviceId)] {
        &self.stepped
    }

    /// One replica.
    pub fn replica(&self, pg: PgId, device: DeviceId) -> Option<&sds_replica::Replica> {
        self.groups.get(pg, device).map(|group| &group.replica)
    }

    /// What is under way on each open device, in words, for a person who asks why nothing moves.
    pub fn describe_stores(&self) -> Vec<String> {
        let open = self.devices.iter().filter_map(|(device, slot)| Some((device, slot.open()?)));
        open.map(|(device, open)| format!("{device}: {}", open.store.describe())).collect()
    }

    /// Replicas that serve as primaries.
    pub fn leaders(&self) -> impl Iterator<Item = (PgId, DeviceId, &sds_replica::Replica)> {
        let all = self.groups.iter().map(|(pg, device, group)| (pg, device, &group.replica));
        all.filter(|(.., replica)| replica.role() == Role::Primary)
    }

    /// The replicas of one group.
    pub fn replicas_of(&self, pg: PgId) -> impl Iterator<Item = (DeviceId, &sds_replica::Replica)> {
        let devices = self.groups.of_pg(pg);
        devices.into_iter().filter_map(move |device| Some((device, self.replica(pg, device)?)))
    }

    /// True if the replica would answer a read that had its bytes in hand at this moment (I13).
    pub fn may_answer_reads(&self, now: Nanos, pg: PgId, device: DeviceId) -> bool {
        let (Some(replica), Some(context)) = (self.replica(pg, device), &self.context) else { return false };
        replica.may_answer_reads(now, context)
    }

    fn device_reports(&self) -> Vec<DeviceReport> {
        let report = |device: DeviceId, space: Space| DeviceReport {
            device,
            used_bytes: (space.aus_total - space.aus_free.min(space.aus_total)) * AU_BYTES as u64,
            free_bytes: space.aus_free * AU_BYTES as u64,
        };
        let open =
            |(device, slot): (&DeviceId, &crate::devices::Device)| Some(report(*device, slot.open()?.store.space()));
        self.devices.iter().filter_map(open).collect()
    }

    /// Figures for metrics.
    pub fn figures(&self) -> Figures {
        let mut roles = [0; 6];
        let (mut resync_layers_left, mut resync_bytes) = (0, 0);
        for (_, _, group) in self.groups.iter() {
            let status = group.replica.status();
            roles[role_index(status.role)] += 1;
            resync_layers_left += status.resync.iter().map(|learner| learner.layers_left).sum::<u64>();
            resync_bytes += status.resync.iter().map(|learner| learner.bytes_copied).sum::<u64>();
        }
        let c = &self.counters;
        Figures {
            operations: c.operations,
            retries: c.retries,
            wrong_primary: c.wrong_primary,
            errors: c.errors,
            requests: self.clients.requests(),
            clients: self.clients.count(),
            handles: self.clients.handles(),
            peers: self.peers.up_count(),
            peer_messages: c.peer_messages,
            strange_messages: c.strange_messages,
            map_wanted: c.map_wanted,
            bad_blocks: c.bad_blocks,
            repaired_blocks: c.repaired_blocks,
            device_failures: c.device_failures,
            roles,
            resync_layers_left,
            resync_bytes,
            resync_bytes_total: self.context.as_ref().map_or(0, |context| context.resync.copied),
            devices: self.devices.iter().map(|(device, slot)| slot.figures(*device)).collect(),
            map_revision: self.map.revision().0,
            in_service: self.context.is_some() && self.is_current(),
        }
    }
}

fn role_index(role: Role) -> usize {
    match role {
        Role::Idle => 0,
        Role::Learner => 1,
        Role::Secondary => 2,
        Role::Activating(_) => 3,
        Role::Primary => 4,
        Role::Failed => 5,
    }
}
