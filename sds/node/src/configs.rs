//! From the map to the replicas: who keeps what, with whom, and where they are.

use std::collections::{BTreeMap, BTreeSet};

use mdm_api::epoch::Revision;
use mdm_api::ids::{DeviceId, PgId, SdsId};
use mdm_api::map::{MapDelta, MapKey, MapObject};
use sds_replica::{Event as ReplicaEvent, MemberHome};

use crate::action::{Action, Severity};
use crate::devices::Stage;
use crate::groups::Told;
use crate::shard::{Process, Shard, Work};

/// Which groups to look at again.
enum Scope {
    None,
    Some(BTreeSet<PgId>),
    All,
}

impl Shard {
    pub(crate) fn delta(&mut self, delta: &MapDelta, out: &mut Vec<Action>) {
        match self.map.apply(delta) {
            Ok(false) => return,
            Ok(true) => {}
            Err(error) => {
                out.push(Action::notice(Severity::Warning, format!("{error}: the map is followed anew")));
                out.push(Action::FollowAnew);
                return;
            }
        }
        if self.map.system().is_some_and(|system| system != self.settings.system) {
            self.stop("the metadata manager is of another system".to_owned(), out);
            return;
        }
        if self.context.is_none() {
            self.map_moved(out);
            return;
        }
        if self.is_superseded(out) {
            return;
        }
        let scope = scope(delta);
        self.adopt_devices(out);
        self.bring_in_line(&scope, out);
        self.run(out);
        if matches!(scope, Scope::All | Scope::Some(_)) {
            self.choose_peers(out);
        }
        self.note_fences(delta, out);
        self.note_drops();
        self.retry_opens(out);
    }

    /// The map has moved, or the process has registered: perhaps replicas may act from now on.
    pub(crate) fn map_moved(&mut self, out: &mut Vec<Action>) {
        let Process::Registered { incarnation, revision } = self.process else { return };
        if self.context.is_some() || self.map.revision() < revision || self.is_superseded(out) {
            return;
        }
        self.begin(incarnation);
        out.push(Action::notice(Severity::Information, format!("in service at revision {}", self.map.revision())));
        self.adopt_devices(out);
        self.bring_in_line(&Scope::All, out);
        self.run(out);
        self.choose_peers(out);
        let everything = MapDelta {
            from: Revision(0),
            to: self.map.revision(),
            changed: self.map.mappings().map(|mapping| MapObject::Mapping(mapping.clone())).collect(),
            removed: Vec::new(),
        };
        self.note_fences(&everything, out);
        self.note_drops();
        self.retry_opens(out);
    }

    /// Another process has registered as this server, or the server is no longer part of the system: this one must end.
    fn is_superseded(&mut self, out: &mut Vec<Action>) -> bool {
        if !self.is_current() {
            return false;
        }
        let reason = match self.map.sds(self.settings.sds) {
            Some(record) if record.incarnation == self.incarnation() => return false,
            Some(_) => "another process has registered as this server: check that its data directory was not copied",
            None => "this server is no longer part of the system",
        };
        self.stop(reason.to_owned(), out);
        true
    }

    fn stop(&mut self, reason: String, out: &mut Vec<Action>) {
        let all: Vec<DeviceId> = self.devices.keys().copied().collect();
        for device in all {
            self.end_groups_of(device, out);
        }
        self.stopped = true;
        out.push(Action::Stop { reason });
    }

    /// Makes and ends replicas, and tells each what has changed for it. All replicas of a group hear of a configuration
    /// before any of them hears anything else: their events are queued behind each other here.
    fn bring_in_line(&mut self, scope: &Scope, out: &mut Vec<Action>) {
        let pgs: BTreeSet<PgId> = match scope {
            Scope::None => return,
            Scope::Some(pgs) => pgs.clone(),
            Scope::All => {
                let kept = self.devices.values().filter_map(|slot| slot.open());
                let kept: BTreeSet<PgId> = kept.flat_map(|open| open.recovered.keys().copied()).collect();
                let led = self.groups.keys().into_iter().map(|(pg, _)| pg);
                self.map.pgs().map(|config| config.pg).chain(led).chain(kept).collect()
            }
        };
        let usable: Vec<DeviceId> = self.devices.keys().copied().filter(|device| self.is_usable(*device)).collect();
        for pg in pgs {
            let Some(told) = self.told(pg) else {
                self.forget_group(pg, &usable, out);
                continue;
            };
            for device in &usable {
                let kept = self.devices.get(device).and_then(|slot| slot.open());
                let is_kept = kept.is_some_and(|open| open.recovered.contains_key(&pg));
                if self.groups.get(pg, *device).is_none() && (told.config.names(*device) || is_kept) {
                    self.begin_group(pg, *device);
                }
            }
            for device in self.groups.of_pg(pg) {
                self.tell(pg, device, &told);
            }
            for device in self.groups.of_pg(pg) {
                self.tell_connections(pg, device);
            }
        }
        // I24: a new primary asks at once, and must not be told of an empty share that nobody has set yet.
        self.set_shares();
    }

    /// The group's configuration, its pool's policy, and where its members are.
    fn told(&self, pg: PgId) -> Option<Told> {
        let config = self.map.pg(pg)?.clone();
        let min_isr = self.map.storage_pool(pg.pool).map_or(1, |pool| pool.min_isr);
        let home = |device: &DeviceId| {
            let server = self.map.device(*device)?.sds;
            let record = self.map.sds(server)?;
            let (incarnation, is_down) = (record.incarnation?, !record.connected);
            Some(MemberHome { device: *device, server, incarnation, is_down })
        };
        let homes = config.isr.iter().chain(&config.learners).filter_map(home).collect();
        Some(Told { config, min_isr, homes })
    }

    fn tell(&mut self, pg: PgId, device: DeviceId, told: &Told) {
        let Some(group) = self.groups.get_mut(pg, device) else { return };
        if group.told.as_ref() == Some(told) {
            return;
        }
        group.told = Some(told.clone());
        let Told { config, min_isr, homes } = told.clone();
        // Before everything else that waits: a message that is older than this map must not meet a replica that is.
        self.work.push_front(Work::Replica { pg, device, event: ReplicaEvent::Config { config, min_isr, homes } });
    }

    /// Tells a replica of the connections to its members that it has not been told of.
    pub(crate) fn tell_connections(&mut self, pg: PgId, device: DeviceId) {
        let (me, own) = (self.settings.sds, self.incarnation());
        let Some(group) = self.groups.get_mut(pg, device) else { return };
        let Some(told) = &group.told else { return };
        let mut news = Vec::new();
        for home in told.homes.iter().filter(|home| home.device != device) {
            let process = if home.server == me { own } else { self.peers.process(home.server) };
            if let Some(incarnation) = process
                && group.connected.get(&home.device) != Some(&incarnation)
            {
                news.push((home.device, incarnation));
            }
        }
        for (member, incarnation) in news {
            group.connected.insert(member, incarnation);
            let event = ReplicaEvent::PeerConnected { device: member, incarnation };
            self.work.push_back(Work::Replica { pg, device, event });
        }
    }

    /// The group's pool is gone: what its stores keep of it goes too.
    fn forget_group(&mut self, pg: PgId, usable: &[DeviceId], out: &mut Vec<Action>) {
        for device in usable {
            let was_led = self.groups.get(pg, *device).is_some();
            self.end_group(pg, *device, out);
            let Some(Stage::Open(open)) = self.devices.get_mut(device).map(|slot| &mut slot.stage) else { continue };
            if was_led || open.recovered.remove(&pg).is_some() {
                open.store.forget(self.now, pg, &mut self.outcomes);
                self.queue_outcomes(*device);
            }
        }
    }

    /// The servers that share a group with this one.
    pub(crate) fn sharing_servers(&self) -> BTreeMap<SdsId, Vec<String>> {
        let me = self.settings.sds;
        let mut sharing = BTreeSet::new();
        for (_, _, group) in self.groups.iter() {
            if let Some(told) = &group.told {
                sharing.extend(told.homes.iter().map(|home| home.server).filter(|server| *server != me));
            }
        }
        let address = |server: SdsId| Some((server, self.map.sds(server)?.addresses.clone()));
        sharing.into_iter().filter_map(address).collect()
    }
}

fn scope(delta: &MapDelta) -> Scope {
    if delta.from == Revision(0) {
        return Scope::All;
    }
    let mut pgs = BTreeSet::new();
    let changed = delta.changed.iter().map(MapObject::key);
    for key in changed.chain(delta.removed.iter().copied()) {
        match key {
            MapKey::Pg(pg) => {
                pgs.insert(pg);
            }
            MapKey::Sds(_) | MapKey::Device(_) | MapKey::StoragePool(_) => return Scope::All,
            _ => {}
        }
    }
    if pgs.is_empty() { Scope::None } else { Scope::Some(pgs) }
}
