//! The server: all of its state, and where each event goes.
//!
//! An event may lead to work for replicas and stores, which leads to more of it; [`Shard::step`] returns when all of that
//! is done, so that what it hands out is everything that follows from the event.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mdm_api::epoch::{Nanos, Revision};
use mdm_api::ids::{DeviceId, KeyId, PgId, ProcessIncarnation, SdsId};
use mdm_api::map::ClusterMap;
use mdm_api::model::DomainKey;
use sds_api::peer::CreditGrant;
use sds_replica::{Context, Credits, Leases, ResyncBudget, RetainedBudget};

use crate::action::Action;
use crate::clients::Clients;
use crate::commands::Commands;
use crate::devices::Device;
use crate::drops::Drops;
use crate::event::{Event, Settings};
use crate::fences::Fences;
use crate::groups::Groups;
use crate::limits::{STORE_TICK_MS, UPKEEP_MS};
use crate::peers::Peers;
use crate::report::Counters;
use crate::stores::Outcome;
use crate::throttle::Throttle;

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Process {
    /// Devices are being opened.
    Opening,
    /// The registration is asked for.
    Registering,
    /// It has an incarnation, which counts from that revision on.
    Registered { incarnation: ProcessIncarnation, revision: Revision },
}

/// Something to be done before the step ends.
pub(crate) enum Work {
    Replica { pg: PgId, device: DeviceId, event: sds_replica::Event },
    Store { device: DeviceId, outcome: Outcome },
}

/// One data server.
pub struct Shard {
    pub(crate) settings: Settings,
    pub(crate) now: Nanos,
    pub(crate) map: ClusterMap,
    pub(crate) process: Process,
    /// What replicas share; from the moment at which they may act.
    pub(crate) context: Option<Context>,
    pub(crate) devices: BTreeMap<DeviceId, Device>,
    pub(crate) groups: Groups,
    pub(crate) clients: Clients,
    pub(crate) peers: Peers,
    pub(crate) fences: Fences,
    pub(crate) drops: Drops,
    pub(crate) commands: Commands,
    pub(crate) counters: Counters,
    pub(crate) work: VecDeque<Work>,
    /// Devices with operations to hand out at the end of the step.
    pub(crate) touched: BTreeSet<DeviceId>,
    pub(crate) replica_actions: Vec<sds_replica::Action>,
    pub(crate) outcomes: Vec<Outcome>,
    /// Replicas that had an event in the last step.
    pub(crate) stepped: Vec<(PgId, DeviceId)>,
    pub(crate) last_complaint: Option<String>,
    pub(crate) next_store_tick: Nanos,
    pub(crate) next_upkeep: Nanos,
    pub(crate) throttle: Throttle,
    /// Which primaries write to each device here.
    pub(crate) sharing: BTreeMap<DeviceId, BTreeSet<DeviceId>>,
    /// The share that each of them was last given.
    pub(crate) shared: BTreeMap<DeviceId, CreditGrant>,
    pub(crate) stopped: bool,
}

impl Shard {
    /// A server that has not started; give it [`Event::Boot`] next.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            now: Nanos(0),
            map: ClusterMap::default(),
            process: Process::Opening,
            context: None,
            devices: BTreeMap::new(),
            groups: Groups::default(),
            clients: Clients::default(),
            peers: Peers::default(),
            fences: Fences::default(),
            drops: Drops::default(),
            commands: Commands::default(),
            counters: Counters::default(),
            work: VecDeque::new(),
            touched: BTreeSet::new(),
            replica_actions: Vec::new(),
            outcomes: Vec::new(),
            stepped: Vec::new(),
            last_complaint: None,
            next_store_tick: Nanos(0),
            next_upkeep: Nanos(0),
            throttle: Throttle::default(),
            sharing: BTreeMap::new(),
            shared: BTreeMap::new(),
            stopped: false,
        }
    }

    /// Something happened at `now`. What is to be done is appended to `out`.
    pub fn step(&mut self, now: Nanos, event: Event, out: &mut Vec<Action>) {
        self.now = self.now.max(now);
        self.stepped.clear();
        if self.stopped {
            return;
        }
        self.pace_resync();
        match event {
            Event::Boot { devices } => self.boot(devices, out),
            Event::DeviceOpened { device, result } => self.device_opened(device, result, out),
            Event::Disk { device, done } => self.device_disk(device, done, out),
            Event::DeviceGone { device, cause } => self.device_gone(device, cause, out),
            Event::CommandDone { id, result } => self.command_done(id, result, out),
            Event::Delta(delta) => self.delta(&delta, out),
            Event::ClientOpen(open) => self.client_open(open, out),
            Event::ClientClose { connection, handle } => self.clients.close_handle(connection, handle),
            Event::ClientRequest { connection, request } => self.client_request(connection, request, out),
            Event::ClientGone { connection } => self.clients.gone(connection),
            Event::PeerUp { sds, incarnation } => self.peer_up(sds, incarnation, out),
            Event::PeerDown { sds, reset } => self.peer_down(sds, reset),
            Event::PeerFrame { sds, incarnation, frame } => self.peer_frame(sds, incarnation, frame, out),
            Event::Drain => self.drain(),
            Event::Tick => {}
        }
        self.run(out);
        self.be_on_time(out);
        self.run(out);
        self.hand_out(out);
    }

    /// When [`Event::Tick`] is due at the latest.
    pub fn next_deadline(&self) -> Nanos {
        [
            self.next_store_tick,
            self.next_upkeep,
            self.groups.deadline(),
            self.commands.deadline(),
            self.peers.deadline(),
        ]
        .into_iter()
        .min()
        .unwrap_or(Nanos::NEVER)
    }

    fn be_on_time(&mut self, out: &mut Vec<Action>) {
        let now = self.now;
        while let Some((pg, device)) = self.groups.pop_due(now) {
            self.work.push_back(Work::Replica { pg, device, event: sds_replica::Event::Tick });
        }
        if self.commands.deadline() <= now {
            self.retry_commands(out);
        }
        if self.peers.deadline() <= now {
            self.ask_leases(out);
        }
        if self.next_store_tick <= now {
            self.next_store_tick = now.plus_ms(STORE_TICK_MS);
            self.tick_stores();
        }
        if self.next_upkeep <= now {
            self.next_upkeep = now.plus_ms(UPKEEP_MS);
            self.upkeep(out);
        }
    }

    /// What need not be done at once.
    fn upkeep(&mut self, out: &mut Vec<Action>) {
        self.reopen_devices(out);
        self.set_shares();
        self.count_devices();
        self.expire_opens(out);
        self.ask_drops();
        self.advance_fences();
        self.settle_verdicts();
    }

    /// Carries work out until there is none.
    pub(crate) fn run(&mut self, out: &mut Vec<Action>) {
        while let Some(work) = self.work.pop_front() {
            match work {
                Work::Replica { pg, device, event } => self.step_replica(pg, device, event, out),
                Work::Store { device, outcome } => self.store_outcome(device, outcome, out),
            }
        }
    }

    /// Hands out operations, one batch for each device.
    fn hand_out(&mut self, out: &mut Vec<Action>) {
        while let Some(device) = self.touched.pop_first() {
            let requests =
                self.devices.get_mut(&device).map(|slot| std::mem::take(&mut slot.outbox)).unwrap_or_default();
            if !requests.is_empty() {
                out.push(Action::Disk { device, requests });
            }
        }
    }

    /// This process, once it has registered.
    pub fn incarnation(&self) -> Option<ProcessIncarnation> {
        match self.process {
            Process::Registered { incarnation, .. } => Some(incarnation),
            Process::Opening | Process::Registering => None,
        }
    }

    /// True once this process has registered and holds a map that knows of it.
    pub fn is_current(&self) -> bool {
        matches!(self.process, Process::Registered { revision, .. } if self.map.revision() >= revision)
    }

    /// The map that is followed.
    pub fn map(&self) -> &ClusterMap {
        &self.map
    }

    /// A key of a protection domain, for the proofs of other servers.
    pub fn domain_key(&self, key: KeyId) -> Option<&DomainKey> {
        self.map.domain_key(key)
    }

    /// The key under which this server proves itself to that one: the newest of their domain.
    pub fn peer_key(&self, peer: SdsId) -> Option<&DomainKey> {
        let domain = self.map.sds(peer)?.protection_domain;
        self.map.domain_keys().filter(|key| key.protection_domain == domain).last()
    }

    /// Replicas may act from here on.
    pub(crate) fn begin(&mut self, incarnation: ProcessIncarnation) {
        let timing = self.settings.timing;
        let retained = RetainedBudget { limit: self.settings.retained_bytes, used: 0 };
        self.context = Some(Context {
            leases: Leases::new(self.settings.sds, incarnation, timing, self.now),
            credits: Credits::default(),
            resync: ResyncBudget::default(),
            retained,
        });
    }
}
