//! The devices of this server, from path to open store and to their end.
//!
//! ```text
//!               OpenDevice          not formatted, Adding
//!   (new) ──▶ Asked ──▶ Formatting ──▶ Opening ──▶ Loading ──▶ Open ──▶ Stopped
//!               │  └──────────────────▶                          ▲
//!               └──▶ Absent (tried again)          presented by PresentDevice, DeviceReady or RegisterSds
//! ```
//!
//! A device is used by replicas only while it is `Open` and the map says that this very process holds it.

use std::collections::BTreeMap;

use mdm_api::command::{PresentedDevice, StoreVerdict};
use mdm_api::epoch::Nanos;
use mdm_api::ids::{DeviceId, DeviceIncarnation, PgId};
use mdm_api::model::DeviceState;
use sds_api::block::AU_BYTES;
use sds_replica::Recovered;
use sds_store::error::FormatError;
use sds_store::format::{FormatParameters, Formatter};
use sds_store::io::{DiskDone, DiskError, DiskRequest};
use sds_store::open::{OpenParameters, Opened, Opener};
use sds_store::request::Verdict;
use sds_store::store::Options;

use crate::action::{Action, Severity};
use crate::commands::Purpose;
use crate::event::KnownDevice;
use crate::loading::Loading;
use crate::report::DeviceFigures;
use crate::shard::{Process, Shard, Work};
use crate::stores::{OpenStore, Outcome};

/// How often a device that could not be opened is tried again.
const REOPEN_MS: u64 = 2000;

/// What the store said when it was opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    incarnation: DeviceIncarnation,
    open_count: u64,
    pub(crate) verdict: Verdict,
}

/// A device that replicas can use.
pub(crate) struct Open {
    pub(crate) store: OpenStore,
    pub(crate) facts: Facts,
    /// What was found of groups for which there is no replica yet.
    pub(crate) recovered: BTreeMap<PgId, Recovered>,
    /// The verdict has been cleared, or is being cleared.
    pub(crate) settling: bool,
}

pub(crate) enum Stage {
    Asked,
    /// `ended`: how it ended, while operations are still in flight.
    Formatting {
        formatter: Box<Formatter>,
        size_bytes: u64,
        forced: bool,
        ended: Option<Result<(), FormatError>>,
    },
    Opening {
        opener: Box<Opener>,
    },
    Loading {
        store: Box<OpenStore>,
        loading: Loading,
        facts: Facts,
    },
    Open(Box<Open>),
    /// It could not be opened; tried again at that time.
    Absent {
        again: Nanos,
        reason: String,
    },
    /// Of no use to this process any more.
    Stopped {
        reason: String,
    },
}

/// A device and where it stands.
pub(crate) struct Device {
    pub(crate) path: String,
    pub(crate) stage: Stage,
    pub(crate) outbox: Vec<DiskRequest>,
    /// Operations of a formatter that have not ended. What comes after it uses the same numbers.
    format_operations: usize,
}

impl Device {
    pub(crate) fn open(&self) -> Option<&Open> {
        match &self.stage {
            Stage::Open(open) => Some(open),
            _ => None,
        }
    }

    pub(crate) fn figures(&self, device: DeviceId) -> DeviceFigures {
        let trouble = match &self.stage {
            Stage::Absent { reason, .. } | Stage::Stopped { reason } => Some(reason.clone()),
            _ => None,
        };
        let store = self.open().map(|open| (open.store.space(), open.store.counters()));
        DeviceFigures { device, path: self.path.clone(), store, trouble }
    }

    fn is_settled(&self) -> bool {
        matches!(self.stage, Stage::Open(_) | Stage::Absent { .. } | Stage::Stopped { .. })
    }
}

impl Shard {
    pub(crate) fn boot(&mut self, devices: Vec<KnownDevice>, out: &mut Vec<Action>) {
        for known in devices {
            self.open_device(known.device, known.path, out);
        }
        self.register_when_ready(out);
    }

    fn open_device(&mut self, device: DeviceId, path: String, out: &mut Vec<Action>) {
        let slot = Device { path: path.clone(), stage: Stage::Asked, outbox: Vec::new(), format_operations: 0 };
        self.devices.insert(device, slot);
        out.push(Action::OpenDevice { device, path });
    }

    fn register_when_ready(&mut self, out: &mut Vec<Action>) {
        if self.process == Process::Opening && self.devices.values().all(Device::is_settled) {
            self.process = Process::Registering;
            self.command(Purpose::Register, out);
        }
    }

    /// Compares with the map: new devices, lost ones, removed ones.
    pub(crate) fn adopt_devices(&mut self, out: &mut Vec<Action>) {
        let sds = self.settings.sds;
        if !self.is_current() {
            return;
        }
        let mine = self.map.devices().filter(|device| device.sds == sds && device.state != DeviceState::Failed);
        let wanted: BTreeMap<DeviceId, String> = mine.map(|device| (device.id, device.path.clone())).collect();
        let gone: Vec<DeviceId> = self.devices.keys().filter(|device| !wanted.contains_key(device)).copied().collect();
        for device in gone {
            self.drop_device(device, out);
        }
        for (device, path) in wanted {
            if !self.devices.contains_key(&device) {
                self.open_device(device, path, out);
            }
            self.present(device, out);
        }
    }

    /// Tells the system that this process holds the device, if it does not know.
    fn present(&mut self, device: DeviceId, out: &mut Vec<Action>) {
        let is_open = self.devices.get(&device).is_some_and(|slot| slot.open().is_some());
        let Some(record) = self.map.device(device) else { return };
        if !is_open || !self.is_current() || record.opened_by == self.incarnation() {
            return;
        }
        let is_new = record.state == DeviceState::Adding;
        self.command(if is_new { Purpose::Ready(device) } else { Purpose::Present(device) }, out);
    }

    pub(crate) fn reopen_devices(&mut self, out: &mut Vec<Action>) {
        let now = self.now;
        let due = |slot: &Device| matches!(slot.stage, Stage::Absent { again, .. } if again <= now);
        let due: Vec<(DeviceId, String)> =
            self.devices.iter().filter(|(_, slot)| due(slot)).map(|(id, slot)| (*id, slot.path.clone())).collect();
        for (device, path) in due {
            // The map may know a better path by now.
            let path = self.map.device(device).map_or(path, |record| record.path.clone());
            self.open_device(device, path, out);
        }
    }

    pub(crate) fn device_opened(&mut self, device: DeviceId, result: Result<u64, String>, out: &mut Vec<Action>) {
        if !self.devices.get(&device).is_some_and(|slot| matches!(slot.stage, Stage::Asked)) {
            if result.is_ok() && !self.devices.contains_key(&device) {
                out.push(Action::CloseDevice { device }); // it was removed while it was being opened
            }
            return;
        }
        match result {
            Err(reason) => self.not_opened(device, reason, out),
            Ok(size_bytes) if self.is_adding(device) => self.format(device, size_bytes, false, out),
            Ok(size_bytes) => self.read_in(device, size_bytes, out),
        }
        self.register_when_ready(out);
    }

    fn is_adding(&self, device: DeviceId) -> bool {
        self.map.device(device).is_some_and(|record| record.state == DeviceState::Adding)
    }

    fn not_opened(&mut self, device: DeviceId, reason: String, out: &mut Vec<Action>) {
        if self.is_adding(device) {
            self.command(Purpose::Refuse(device, reason.clone()), out);
            self.stop_device(device, reason, out);
        } else if let Some(slot) = self.devices.get_mut(&device) {
            let is_news = !matches!(&slot.stage, Stage::Absent { reason: old, .. } if *old == reason);
            if is_news {
                out.push(Action::notice(Severity::Error, format!("device {device}: {reason}")));
            }
            slot.stage = Stage::Absent { again: self.now.plus_ms(REOPEN_MS), reason };
        }
    }

    fn format(&mut self, device: DeviceId, size_bytes: u64, forced: bool, out: &mut Vec<Action>) {
        let Some(record) = self.map.device(device) else { return };
        // Salts need only differ between lives of devices: the device's incarnation and the process's seed see to that.
        let mixed = blake3::hash(&[self.settings.seed.to_le_bytes(), record.incarnation.0.to_le_bytes()].concat());
        let salt = mixed.as_bytes()[..8].iter().fold(0_u64, |salt, byte| salt << 8 | u64::from(*byte));
        let parameters = FormatParameters {
            system: self.settings.system,
            device,
            incarnation: record.incarnation,
            size_bytes,
            salt,
            journal_bytes: self.settings.journal_bytes,
            force: forced,
        };
        match Formatter::new(parameters) {
            Ok(mut formatter) => {
                let mut requests = Vec::new();
                formatter.start(&mut requests);
                let Some(slot) = self.devices.get_mut(&device) else { return };
                slot.format_operations = requests.len();
                let stage = Stage::Formatting { formatter: Box::new(formatter), size_bytes, forced, ended: None };
                self.enter(device, stage, requests);
            }
            Err(error) => self.not_opened(device, error.to_string(), out),
        }
    }

    fn read_in(&mut self, device: DeviceId, size_bytes: u64, out: &mut Vec<Action>) {
        let incarnation = self.map.device(device).map(|record| record.incarnation);
        let system = Some(self.settings.system);
        let options = Options { scrub_period_ms: self.settings.scrub_period_ms, ..Options::default() };
        let parameters = OpenParameters { size_bytes, system, device: Some(device), incarnation, options };
        let mut opener = Opener::new(parameters);
        let mut requests = Vec::new();
        match opener.start(&mut requests) {
            Ok(()) => self.enter(device, Stage::Opening { opener: Box::new(opener) }, requests),
            Err(error) => {
                out.push(Action::CloseDevice { device });
                self.not_opened(device, error.to_string(), out);
            }
        }
    }

    fn enter(&mut self, device: DeviceId, stage: Stage, requests: Vec<DiskRequest>) {
        if let Some(slot) = self.devices.get_mut(&device) {
            slot.stage = stage;
            slot.outbox.extend(requests);
            self.touched.insert(device);
        }
    }

    pub(crate) fn device_disk(&mut self, device: DeviceId, done: Vec<DiskDone>, out: &mut Vec<Action>) {
        for done in done {
            let Some(slot) = self.devices.get_mut(&device) else { return };
            match &mut slot.stage {
                Stage::Formatting { .. } => self.format_step(device, done, out),
                Stage::Opening { .. } => self.open_step(device, done, out),
                Stage::Loading { store, .. } => store.disk(self.now, done, &mut self.outcomes),
                Stage::Open(open) => open.store.disk(self.now, done, &mut self.outcomes),
                Stage::Asked | Stage::Absent { .. } | Stage::Stopped { .. } => {}
            }
            self.queue_outcomes(device);
        }
        self.run(out);
        self.held_released(device);
    }

    /// What came out of the store is work to be done.
    pub(crate) fn queue_outcomes(&mut self, device: DeviceId) {
        for outcome in self.outcomes.drain(..) {
            self.work.push_back(Work::Store { device, outcome });
        }
    }

    fn held_released(&mut self, device: DeviceId) {
        if let Some(Stage::Open(open)) = self.devices.get_mut(&device).map(|slot| &mut slot.stage)
            && open.store.is_holding()
        {
            open.store.release_held(self.now, &mut self.outcomes);
            self.queue_outcomes(device);
        }
    }

    fn format_step(&mut self, device: DeviceId, done: DiskDone, out: &mut Vec<Action>) {
        let Some(slot) = self.devices.get_mut(&device) else { return };
        let Stage::Formatting { formatter, size_bytes, forced, ended } = &mut slot.stage else { return };
        slot.format_operations = slot.format_operations.saturating_sub(1);
        if ended.is_none() {
            let mut requests = Vec::new();
            *ended = formatter.step(done, &mut requests).map(|result| result.map(|_| ()));
            slot.format_operations += requests.len();
            slot.outbox.extend(requests);
            self.touched.insert(device);
        }
        if slot.format_operations > 0 {
            return;
        }
        let (size_bytes, forced) = (*size_bytes, *forced);
        match ended.take() {
            None => {}
            Some(Ok(())) => self.read_in(device, size_bytes, out),
            // Formatted by an earlier process, which died before it could say so: it is this device already.
            Some(Err(FormatError::AshlarDevice { system, device: found }))
                if system == self.settings.system && found == device =>
            {
                self.read_in(device, size_bytes, out);
            }
            // I4: a device that the system has removed never counts again; whoever adds its path wants it wiped.
            Some(Err(FormatError::AshlarDevice { system, device: found }))
                if !forced && system == self.settings.system && self.map.device(found).is_none() =>
            {
                self.format(device, size_bytes, true, out);
            }
            Some(Err(error)) => self.not_opened(device, error.to_string(), out),
        }
    }

    fn open_step(&mut self, device: DeviceId, done: DiskDone, out: &mut Vec<Action>) {
        let Some(slot) = self.devices.get_mut(&device) else { return };
        let Stage::Opening { opener } = &mut slot.stage else { return };
        let mut requests = Vec::new();
        let result = opener.step(done, &mut requests);
        slot.outbox.extend(requests);
        self.touched.insert(device);
        match result {
            None => {}
            Some(Err(error)) => {
                out.push(Action::CloseDevice { device });
                self.not_opened(device, error.to_string(), out);
                self.register_when_ready(out);
            }
            Some(Ok(Opened { store, recovered })) => {
                let incarnation = store.super_block().incarnation;
                let facts = Facts { incarnation, open_count: recovered.open_count, verdict: recovered.verdict };
                let mut store = Box::new(OpenStore::new(store));
                let mut loading = Loading::new(recovered);
                loading.proceed(self.now, &mut store, &mut self.outcomes);
                slot.stage = Stage::Loading { store, loading, facts };
                self.queue_outcomes(device);
                self.loaded(device, out);
            }
        }
    }

    /// An entry was read back while loading.
    pub(crate) fn entry_loaded(&mut self, device: DeviceId, outcome: Outcome, out: &mut Vec<Action>) {
        let Some(slot) = self.devices.get_mut(&device) else { return };
        let Stage::Loading { store, loading, .. } = &mut slot.stage else { return };
        match outcome {
            Outcome::Entry { pg, result: Ok(entry), .. } => loading.arrived(pg, entry),
            Outcome::Entry { pg, seq, result: Err(error) } => {
                if loading.lost(pg, seq) {
                    let text = format!("device {device}: entry {seq} of group {pg} is lost: {error}");
                    out.push(Action::notice(Severity::Error, text));
                }
            }
            _ => return,
        }
        loading.proceed(self.now, store, &mut self.outcomes);
        self.queue_outcomes(device);
        self.loaded(device, out);
    }

    fn loaded(&mut self, device: DeviceId, out: &mut Vec<Action>) {
        let Some(slot) = self.devices.get_mut(&device) else { return };
        if !matches!(&slot.stage, Stage::Loading { loading, .. } if loading.is_done()) {
            return;
        }
        let stage = std::mem::replace(&mut slot.stage, Stage::Asked);
        let Stage::Loading { store, loading, mut facts } = stage else { return };
        let (verdict, recovered) = loading.finish();
        facts.verdict = verdict;
        let settling = verdict == Verdict::Clean;
        slot.stage = Stage::Open(Box::new(Open { store: *store, facts, recovered, settling }));
        let text = format!("device {device} at {}: open, {}", slot.path, describe(verdict));
        let severity = if verdict == Verdict::Clean { Severity::Information } else { Severity::Warning };
        out.push(Action::notice(severity, text));
        self.remember_devices(out);
        self.register_when_ready(out);
        self.present(device, out);
    }

    fn remember_devices(&self, out: &mut Vec<Action>) {
        let open = self.devices.iter().filter(|(_, slot)| !matches!(slot.stage, Stage::Stopped { .. }));
        let list = open.map(|(device, slot)| KnownDevice { device: *device, path: slot.path.clone() }).collect();
        out.push(Action::RememberDevices(list));
    }

    /// The medium does nothing any more (F19).
    pub(crate) fn device_gone(&mut self, device: DeviceId, cause: DiskError, out: &mut Vec<Action>) {
        let Some(slot) = self.devices.get_mut(&device) else { return };
        match &mut slot.stage {
            Stage::Open(open) => open.store.device_gone(cause, &mut self.outcomes),
            Stage::Loading { store, .. } => store.device_gone(cause, &mut self.outcomes),
            Stage::Formatting { .. } | Stage::Opening { .. } => {
                out.push(Action::CloseDevice { device });
                self.not_opened(device, cause.to_string(), out);
                self.register_when_ready(out);
            }
            Stage::Asked | Stage::Absent { .. } | Stage::Stopped { .. } => {}
        }
        self.queue_outcomes(device);
    }

    /// I22, F13, F14: the store has failed, once and for good. Everything on it ends here, and the system is told.
    pub(crate) fn device_failed(&mut self, device: DeviceId, reason: String, out: &mut Vec<Action>) {
        self.counters.device_failures += 1;
        self.command(Purpose::Fail(device, reason.clone()), out);
        self.stop_device(device, reason, out);
        self.register_when_ready(out);
    }

    /// The device is of no use to this process any more.
    pub(crate) fn stop_device(&mut self, device: DeviceId, reason: String, out: &mut Vec<Action>) {
        self.end_groups_of(device, out);
        let Some(slot) = self.devices.get_mut(&device) else { return };
        if matches!(slot.stage, Stage::Stopped { .. }) {
            return;
        }
        out.push(Action::notice(Severity::Error, format!("device {device} at {}: {reason}", slot.path)));
        slot.outbox.clear();
        slot.stage = Stage::Stopped { reason };
        out.push(Action::CloseDevice { device });
    }

    /// The system does not know the device any more.
    fn drop_device(&mut self, device: DeviceId, out: &mut Vec<Action>) {
        self.end_groups_of(device, out);
        if let Some(slot) = self.devices.remove(&device)
            && !matches!(slot.stage, Stage::Stopped { .. } | Stage::Absent { .. })
        {
            let text = format!("device {device} at {}: no longer part of the system", slot.path);
            out.push(Action::notice(Severity::Information, text));
            out.push(Action::CloseDevice { device });
        }
        self.remember_devices(out);
    }

    pub(crate) fn tick_stores(&mut self) {
        let devices: Vec<DeviceId> = self.devices.keys().copied().collect();
        for device in devices {
            if let Some(Stage::Open(open)) = self.devices.get_mut(&device).map(|slot| &mut slot.stage) {
                open.store.tick(self.now, &mut self.outcomes);
                if open.store.is_holding() {
                    open.store.release_held(self.now, &mut self.outcomes);
                }
                self.queue_outcomes(device);
            }
        }
    }

    pub(crate) fn presented_devices(&self) -> Vec<PresentedDevice> {
        self.devices.keys().filter_map(|device| self.presented_device(*device)).collect()
    }

    pub(crate) fn presented_device(&self, device: DeviceId) -> Option<PresentedDevice> {
        let open = self.devices.get(&device)?.open()?;
        Some(PresentedDevice {
            device,
            incarnation: open.facts.incarnation,
            open_count: open.facts.open_count,
            size_bytes: open.store.space().aus_total * AU_BYTES as u64,
            verdict: match open.facts.verdict {
                Verdict::Clean => StoreVerdict::Clean,
                Verdict::TailUncertain => StoreVerdict::TailUncertain,
                Verdict::Suspect { .. } => StoreVerdict::Suspect,
            },
        })
    }

    /// True if replicas may use the device: it is open, and the map says that this process holds it.
    pub(crate) fn is_usable(&self, device: DeviceId) -> bool {
        let is_held = self.map.device(device).is_some_and(|record| record.opened_by == self.incarnation());
        is_held && self.devices.get(&device).is_some_and(|slot| slot.open().is_some())
    }

    /// Applies and checkpoints everything, for an orderly stop.
    pub(crate) fn drain(&mut self) {
        let devices: Vec<DeviceId> = self.devices.keys().copied().collect();
        for device in devices {
            if let Some(Stage::Open(open)) = self.devices.get_mut(&device).map(|slot| &mut slot.stage) {
                open.store.checkpoint(self.now, &mut self.outcomes);
                self.queue_outcomes(device);
            }
        }
    }

    /// True once no open store has anything left to apply of what [`crate::Event::Drain`] asked for.
    pub fn is_drained(&self) -> bool {
        self.devices.values().filter_map(Device::open).all(|open| !open.store.is_draining())
    }
}

fn describe(verdict: Verdict) -> String {
    match verdict {
        Verdict::Clean => "clean".to_owned(),
        Verdict::TailUncertain => "its journal ends in a torn frame".to_owned(),
        Verdict::Suspect { why } => format!("SUSPECT: {why}; its copies are made anew from their peers"),
    }
}
