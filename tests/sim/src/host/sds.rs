//! A data server's host: the production core, its devices, its connections.

use std::collections::BTreeMap;

use mdm_api::control::{PeerRole, Request, Response};
use mdm_api::epoch::Nanos;
use mdm_api::frame::FrameKind;
use mdm_api::ids::{DeviceId, SdsId, SystemId};
use mdm_api::map::MapView;
use mdm_api::timing::Timing;
use sds_api::client::{ClientError, ClientReply};
use sds_api::open::OpenMessage;
use sds_node::{Action, CommandFailure, CommandId, Event, KnownDevice, Settings, Shard};

use crate::core::{Core, Input};
use crate::disk::{Disk, Image};
use crate::host::control::{Control, Heard};
use crate::host::links::{Links, joined, opening};
use crate::marks::Marks;
use crate::net::{ConnId, Frame, NodeId, Port, Signal};
use crate::rng::Rng;

/// A place for a device.
pub struct Slot {
    /// Its path on this host.
    pub path: String,
    /// What is there.
    pub disk: Disk,
    open: Option<DeviceId>,
    /// Operations under way, and of which opening.
    running: BTreeMap<u64, u32>,
    openings: u32,
    /// Noted when it began to hang.
    hung_at: Option<Nanos>,
    /// What was on it, and how often it had been opened then, as the system knows.
    image: Option<(Image, u64)>,
    /// It is not the device any more that the system knows.
    pub is_lost: bool,
}

impl Slot {
    /// A device at a path.
    pub fn new(path: String, disk: Disk) -> Self {
        Self {
            path,
            disk,
            open: None,
            running: BTreeMap::new(),
            openings: 0,
            hung_at: None,
            image: None,
            is_lost: false,
        }
    }

    /// True if there is an older state of it, from before the last opening that the system knows of: `recorded`, if that was
    /// by the present process. Else notes the present one for a later time. What happened since an opening that nobody was
    /// told of cannot be missed by anybody.
    pub fn has_older_state(&mut self, recorded: Option<u64>) -> bool {
        match (&self.image, recorded) {
            (Some((_, then)), Some(now)) => *then < now,
            (None, Some(now)) => {
                self.image = Some((self.disk.image(), now));
                false
            }
            (_, None) => false,
        }
    }

    /// Goes back to it.
    pub fn roll_back(&mut self) {
        if let Some((image, _)) = self.image.take() {
            self.disk.restore(image);
        }
    }

    /// True if somebody has to replace it.
    pub fn is_sick(&self) -> bool {
        let condition = &self.disk.condition;
        condition.fails_writes || condition.full || condition.hangs || self.is_lost
    }

    /// The device that the process has open here.
    pub fn device(&self) -> Option<DeviceId> {
        self.open
    }
}

/// The oldest operation may take so long before the device counts as hung.
const HUNG_MS: u64 = 5000;
const COMMAND_MS: u64 = 5000;

/// See the module.
pub struct SdsHost {
    node: NodeId,
    system: SystemId,
    /// Who it is, once added.
    pub id: Option<SdsId>,
    shard: Option<Shard>,
    /// Its devices.
    pub slots: Vec<Slot>,
    remembered: Vec<KnownDevice>,
    control: Option<Control>,
    links: Option<Links>,
    rng: Rng,
    next_heartbeat: Nanos,
    /// What its earlier processes counted.
    seen: Seen,
}

/// What processes of a server counted, over all of their lives.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Blocks that were bad where they were read.
    pub bad_blocks: u64,
    /// Of these, blocks that were repaired from a peer.
    pub repaired_blocks: u64,
    /// Devices that failed.
    pub device_failures: u64,
    /// Bytes that went to learners.
    pub copied_bytes: u64,
    /// Checkpoints of stores.
    pub checkpoints: u64,
    /// Looks at which a store had units in quarantine.
    pub quarantined: u64,
}

impl SdsHost {
    /// A host without a server.
    pub fn new(node: NodeId, system: SystemId, slots: Vec<Slot>, rng: Rng) -> Self {
        Self {
            node,
            system,
            id: None,
            shard: None,
            slots,
            remembered: Vec::new(),
            control: None,
            links: None,
            rng,
            next_heartbeat: Nanos(0),
            seen: Seen::default(),
        }
    }

    /// The server, while its process runs.
    pub fn shard(&self) -> Option<&Shard> {
        self.shard.as_ref()
    }

    /// A device that was taken out comes back: its server believes that it is still its own (F32).
    pub fn remember(&mut self, device: DeviceId, slot: usize) {
        let slot = &mut self.slots[slot];
        slot.disk.condition = crate::disk::Condition::default();
        self.remembered.push(KnownDevice { device, path: slot.path.clone() });
    }

    /// The list of known devices is lost: it is found again in the map.
    pub fn forget_devices(&mut self) {
        self.remembered.clear();
    }

    /// What its processes have counted, the present one included.
    pub fn counted(&self) -> Seen {
        let mut seen = self.seen;
        let Some(figures) = self.shard.as_ref().map(Shard::figures) else { return seen };
        seen.bad_blocks += figures.bad_blocks;
        seen.repaired_blocks += figures.repaired_blocks;
        seen.device_failures += figures.device_failures;
        seen.copied_bytes += figures.resync_bytes_total;
        for (space, counters) in figures.devices.iter().filter_map(|device| device.store.as_ref()) {
            seen.checkpoints += counters.checkpoints;
            seen.quarantined += u64::from(space.aus_quarantined > 0);
        }
        seen
    }

    /// The process has ended.
    pub fn ended(&mut self, power_lost: bool) {
        self.seen = self.counted();
        self.shard = None;
        self.control = None;
        self.links = None;
        for slot in &mut self.slots {
            slot.open = None;
            slot.running.clear();
            slot.hung_at = None;
            if power_lost { slot.disk.power_lost() } else { slot.disk.process_ended() }
        }
    }

    /// Something happened.
    pub fn input(&mut self, core: &mut Core, input: Input) {
        match input {
            Input::Start => self.start(core),
            Input::Wake => self.wake(core),
            Input::Disk(slot, number) => self.disk_done(core, slot, number),
            Input::Net(conn, signal) => self.signal(core, conn, signal),
            Input::Files => {}
        }
        self.arm(core);
    }

    fn arm(&self, core: &mut Core) {
        let (Some(shard), Some(control), Some(links)) = (&self.shard, &self.control, &self.links) else { return };
        let now = core.local(self.node);
        let hung = self.slots.iter().filter_map(|slot| slot.hung_at).min().unwrap_or(Nanos::NEVER);
        let next = [shard.next_deadline(), control.deadline(now), links.deadline(now), self.next_heartbeat, hung];
        core.arm(self.node, next.into_iter().min().unwrap_or(Nanos::NEVER));
    }

    fn start(&mut self, core: &mut Core) {
        let Some(id) = self.id else { return };
        let settings = Settings {
            system: self.system,
            sds: id,
            nonce: self.rng.word() | 1,
            seed: self.rng.word(),
            addresses: vec![format!("h{}:7000", self.node)],
            journal_bytes: Some(core.plan.journal_bytes),
            scrub_period_ms: core.plan.scrub_period_ms,
            retained_bytes: core.plan.retained_bytes,
            timing: Timing::DEFAULT,
        };
        self.shard = Some(Shard::new(settings));
        let turn = self.rng.index(8);
        self.control = Some(Control::new(self.node, PeerRole::Sds(id), Some(MapView::Sds(id)), true, turn));
        self.links = Some(Links::new(self.node, self.system, id));
        self.next_heartbeat = core.local(self.node);
        let devices = self.remembered.clone();
        self.step(core, Event::Boot { devices });
        self.with_control(core, |control, core, _| control.work(core));
    }

    fn wake(&mut self, core: &mut Core) {
        let now = core.local(self.node);
        self.with_control(core, |control, core, heard| control.wake(core, heard));
        self.find_hung(core, now);
        self.step(core, Event::Tick);
        if self.next_heartbeat <= now
            && let (Some(shard), Some(control)) = (&self.shard, &mut self.control)
        {
            self.next_heartbeat = now.plus_ms(Timing::DEFAULT.heartbeat_ms);
            control.beat(core, &shard.heartbeat(now));
        }
        if let (Some(shard), Some(links)) = (&self.shard, &mut self.links) {
            links.dial(core, shard);
        }
    }

    fn find_hung(&mut self, core: &mut Core, now: Nanos) {
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            if slot.hung_at.is_some_and(|hung| hung <= now) {
                slot.hung_at = None;
                if let Some(device) = slot.open {
                    self.step(core, Event::DeviceGone { device, cause: sds_store::io::DiskError::Hung });
                }
            }
        }
    }

    fn disk_done(&mut self, core: &mut Core, at: usize, number: u64) {
        let slot = &mut self.slots[at];
        let Some(done) = slot.disk.finish(number) else {
            // It has begun to hang.
            slot.hung_at = slot.hung_at.or(Some(core.local(self.node).plus_ms(HUNG_MS)));
            return;
        };
        let opening = slot.running.remove(&number);
        let Some(device) = slot.open.filter(|_| opening == Some(slot.openings)) else { return };
        self.step(core, Event::Disk { device, done: vec![done] });
    }

    fn signal(&mut self, core: &mut Core, conn: ConnId, signal: Signal) {
        if self.control.as_ref().is_some_and(|control| control.owns(conn)) {
            self.with_control(core, |control, core, heard| control.signal(core, conn, signal, heard));
            return;
        }
        if matches!(signal, Signal::Accepted { port, .. } if port != Port::Data) {
            return core.close(conn, self.node);
        }
        let mut events = Vec::new();
        let (Some(shard), Some(links)) = (&self.shard, &mut self.links) else { return };
        links.signal(core, shard, conn, signal, &mut events);
        events.into_iter().for_each(|event| self.step(core, event));
    }

    fn with_control(&mut self, core: &mut Core, work: impl FnOnce(&mut Control, &mut Core, &mut Vec<Heard>)) {
        let Some(control) = &mut self.control else { return };
        let mut heard = Vec::new();
        work(control, core, &mut heard);
        for heard in heard {
            match heard {
                Heard::Delta(delta) => self.step(core, Event::Delta(delta)),
                Heard::Answer(key, answer) => {
                    let result = match answer {
                        Some(Ok(Response::Command(answer))) => Ok(answer),
                        Some(Ok(_)) | None => Err(CommandFailure::Unknown),
                        Some(Err(error)) => Err(CommandFailure::Refused(error)),
                    };
                    self.step(core, Event::CommandDone { id: CommandId(key), result });
                }
            }
        }
    }

    fn step(&mut self, core: &mut Core, event: Event) {
        let Some(shard) = &mut self.shard else { return };
        let mut actions = Vec::new();
        shard.step(core.local(self.node), event, &mut actions);
        core.watch.look_at_server(core.now, self.node, shard, &mut core.marks);
        self.carry_out(core, actions);
    }

    fn carry_out(&mut self, core: &mut Core, actions: Vec<Action>) {
        let mut events = Vec::new();
        for action in actions {
            let (Some(shard), Some(links), Some(control)) = (&self.shard, &mut self.links, &mut self.control) else {
                return;
            };
            match action {
                Action::OpenDevice { device, path } => events.push(self.open(device, &path)),
                Action::CloseDevice { device } => self.close(device),
                Action::Disk { device, requests } => self.submit(core, device, requests),
                Action::RememberDevices(devices) => self.remembered = devices,
                Action::Command { id, command } => {
                    let request_id = u128::from(self.rng.word()) << 64 | u128::from(self.rng.word()) | 1;
                    control.ask(core, id.0, Request::Daemon { request_id, command }, COMMAND_MS);
                }
                Action::FollowAnew => control.follow_anew(core),
                Action::ConnectPeer { sds, .. } => links.want(core, shard, sds, &mut events),
                Action::DisconnectPeer { sds } => links.unwant(core, sds),
                Action::SendPeer { sds, frame } => links.send_peer(core, sds, &frame),
                Action::Opened { connection, request, handle, proof } => {
                    core.send(ConnId(connection), self.node, opening(&OpenMessage::Opened { request, handle, proof }));
                }
                Action::OpenRefused { connection, request, code, text } => {
                    core.send(
                        ConnId(connection),
                        self.node,
                        opening(&OpenMessage::OpenRefused { request, code, text }),
                    );
                }
                Action::Reply { connection, reply } => {
                    note_reply(&reply, &mut core.marks);
                    let mut header = Vec::new();
                    reply.encode_header(&mut header);
                    let frame = Frame::new(FrameKind::ClientReply, header, joined(reply.payload()));
                    core.send(ConnId(connection), self.node, frame);
                }
                Action::CloseClient { connection, text } => {
                    let node = self.node;
                    core.trace.line(core.now, || format!("sds@{node}: closes a client: {text}"));
                    links.close_client(core, ConnId(connection), &mut events);
                }
                Action::Notice(notice) => {
                    let node = self.node;
                    core.trace.line(core.now, || format!("sds@{node}: {notice}"));
                }
                Action::Stop { reason } => {
                    let node = self.node;
                    core.trace.line(core.now, || format!("sds@{node} stops: {reason}"));
                    core.watch.wants_restart.push(self.node);
                    return;
                }
            }
        }
        events.into_iter().for_each(|event| self.step(core, event));
    }

    fn open(&mut self, device: DeviceId, path: &str) -> Event {
        let result = match self.slots.iter_mut().find(|slot| slot.path == path) {
            None => Err(format!("there is no {path}: correct the path")),
            Some(slot) if slot.open.is_some() => Err(format!("{path} is in use")),
            Some(slot) => {
                slot.open = Some(device);
                slot.openings += 1;
                Ok(slot.disk.size())
            }
        };
        Event::DeviceOpened { device, result }
    }

    fn close(&mut self, device: DeviceId) {
        for slot in self.slots.iter_mut().filter(|slot| slot.open == Some(device)) {
            slot.open = None;
            slot.hung_at = None;
        }
    }

    fn submit(&mut self, core: &mut Core, device: DeviceId, requests: Vec<sds_store::io::DiskRequest>) {
        let now = core.local(self.node);
        let Some(at) = self.slots.iter().position(|slot| slot.open == Some(device)) else { return };
        let slot = &mut self.slots[at];
        for request in requests {
            let (number, takes) = slot.disk.begin(request);
            slot.running.insert(number, slot.openings);
            match takes {
                Some(takes) => core.later(self.node, takes, Input::Disk(at, number)),
                None => slot.hung_at = slot.hung_at.or(Some(now.plus_ms(HUNG_MS))),
            }
        }
    }

    /// The path of each open device, for whoever damages or replaces it.
    pub fn open_devices(&self) -> impl Iterator<Item = (usize, DeviceId)> {
        self.slots.iter().enumerate().filter_map(|(at, slot)| Some((at, slot.open?)))
    }
}

/// Rows that an answer to a client is an example of.
fn note_reply(reply: &ClientReply, marks: &mut Marks) {
    match &reply.result {
        Err(ClientError::WrongPrimary(_)) => marks.hit("F12"),
        Err(ClientError::Medium) => marks.hit("F16"),
        Err(ClientError::NoSpace) => {
            marks.hit("F20");
            marks.hit("I24");
        }
        _ => {}
    }
}
