//! A data client's host: sessions are the production core; around them credentials, connections and workers.

use std::collections::{BTreeMap, VecDeque};

use mdm_api::command::{CommandAnswer, DaemonCommand};
use mdm_api::control::{PeerRole, Request, Response};
use mdm_api::epoch::Nanos;
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::frame::FrameKind;
use mdm_api::ids::{Guid, SdcId, SdsId, SystemId};
use mdm_api::map::{ClusterMap, MapView};
use mdm_api::ticket::{Nonce, client_proof, equal, server_proof};
use sdc_client::limits::SILENCE_MS;
use sdc_client::session::{Action, Event, Identity, Policy, Session};
use sds_api::client::{ClientReply, ClientRequest};
use sds_api::open::{OPEN_VERSION, OpenMessage};

use crate::core::{Core, Input};
use crate::host::control::{Control, Heard};
use crate::host::links::opening;
use crate::host::volume::{Stage, Volume};
use crate::net::{ConnId, Frame, NodeId, Port, Signal};
use crate::rng::Rng;

const OPENING_MS: u64 = 3000;
const QUESTION_MS: u64 = 40_000;
const KEY_REGISTER: u64 = 1 << 40;
const KEY_CREDENTIAL: u64 = 1 << 41;

struct Link {
    conn: ConnId,
    nonces: Option<(Nonce, Nonce)>,
    wanted: Vec<u16>,
    openings: BTreeMap<u32, (u16, Nanos)>,
    next_request: u32,
    last_heard: Nanos,
}

/// See the module.
pub struct SdcHost {
    node: NodeId,
    system: SystemId,
    /// Who it is, once recorded.
    pub id: Option<SdcId>,
    /// The host's lasting identity.
    pub guid: Guid,
    /// The volumes that it uses; a lane is a place in this list, from 1.
    pub volumes: Vec<Volume>,
    map: ClusterMap,
    control: Option<Control>,
    links: BTreeMap<SdsId, Link>,
    tag_floor: u64,
    rng: Rng,
}

impl SdcHost {
    /// A host without a client.
    pub fn new(node: NodeId, system: SystemId, mut rng: Rng) -> Self {
        let mut guid = [0; 16];
        guid.copy_from_slice(&rng.bytes32()[..16]);
        Self {
            node,
            system,
            id: None,
            guid: Guid(guid),
            volumes: Vec::new(),
            map: ClusterMap::default(),
            control: None,
            links: BTreeMap::new(),
            tag_floor: 0,
            rng,
        }
    }

    /// The process has ended.
    pub fn ended(&mut self) {
        self.control = None;
        self.links.clear();
        self.map = ClusterMap::default();
        self.tag_floor = 0;
        self.volumes.iter_mut().for_each(|volume| volume.close(Nanos(0)));
    }

    /// Something happened.
    pub fn input(&mut self, core: &mut Core, input: Input) {
        match input {
            Input::Start => self.start(core),
            Input::Wake => self.wake(core),
            Input::Net(conn, signal) => self.signal(core, conn, signal),
            Input::Disk(..) | Input::Files => {}
        }
        self.work(core);
    }

    fn start(&mut self, core: &mut Core) {
        let Some(id) = self.id else { return };
        let turn = self.rng.index(8);
        let mut control = Control::new(self.node, PeerRole::Sdc(id), Some(MapView::Sdc(id)), false, turn);
        let command = DaemonCommand::RegisterSdc { guid: self.guid, name: None, address: format!("h{}", self.node) };
        let request_id = u128::from(self.rng.word()) | 1;
        control.ask(core, KEY_REGISTER, Request::Daemon { request_id, command }, QUESTION_MS);
        self.control = Some(control);
    }

    fn wake(&mut self, core: &mut Core) {
        let now = core.local(self.node);
        self.with_control(core, |control, core, heard| control.wake(core, heard));
        for lane in 1..=self.volumes.len() as u16 {
            if self.volumes[usize::from(lane) - 1].session().is_some_and(|session| session.next_deadline() <= now) {
                self.step(core, lane, Event::Tick);
            }
        }
        let is_late = |link: &Link| link.openings.values().any(|(_, at)| now.ms_since(*at) > OPENING_MS);
        let late: Vec<SdsId> = self.links.iter().filter(|(_, link)| is_late(link)).map(|(sds, _)| *sds).collect();
        late.into_iter().for_each(|sds| self.drop_link(core, sds));
    }

    /// Opens what is closed, submits what is due, and asks to be woken.
    fn work(&mut self, core: &mut Core) {
        if self.control.is_none() {
            return;
        }
        let now = core.local(self.node);
        for lane in 1..=self.volumes.len() as u16 {
            let at = usize::from(lane) - 1;
            self.open_volume(core, now, lane);
            let due = self.volumes[at].due(core, now);
            for (id, request) in due {
                self.step(core, lane, Event::Submit(id, request));
            }
        }
        let opening = |link: &Link| link.openings.values().map(|(_, at)| at.plus_ms(OPENING_MS + 1)).min();
        let openings = self.links.values().filter_map(opening).min().unwrap_or(Nanos::NEVER);
        let volumes =
            self.volumes.iter().map(|volume| volume.deadline(core.directory.load)).min().unwrap_or(Nanos::NEVER);
        let control = self.control.as_ref().map_or(Nanos::NEVER, |control| control.deadline(now));
        core.arm(self.node, openings.min(volumes).min(control));
    }

    fn open_volume(&mut self, core: &mut Core, now: Nanos, lane: u16) {
        let (Some(sdc), Some(control)) = (self.id, &mut self.control) else { return };
        let volume = &mut self.volumes[usize::from(lane) - 1];
        if !matches!(volume.stage, Stage::Closed(again) if again <= now) {
            return;
        }
        let is_mapped = self.map.mapping(volume.id, sdc).is_some_and(|mapping| !mapping.revoked);
        if !is_mapped || self.map.volume(volume.id).is_none_or(|volume| volume.removing) {
            volume.stage = Stage::Closed(now.plus_ms(100));
            return;
        }
        volume.opener = self.rng.word() | 1;
        volume.stage = Stage::Opening;
        let command = DaemonCommand::OpenMapping { volume: volume.id, sdc, opener: volume.opener };
        let request_id = u128::from(self.rng.word()) | 1 << 64;
        control.ask(core, u64::from(lane), Request::Daemon { request_id, command }, QUESTION_MS);
    }

    fn with_control(&mut self, core: &mut Core, work: impl FnOnce(&mut Control, &mut Core, &mut Vec<Heard>)) {
        let Some(control) = &mut self.control else { return };
        let mut heard = Vec::new();
        work(control, core, &mut heard);
        for heard in heard {
            match heard {
                Heard::Delta(delta) => {
                    if self.map.apply(&delta).is_err() {
                        core.watch.fail(core.now, "a client's map is out of step".to_owned());
                    }
                    (1..=self.volumes.len() as u16).for_each(|lane| self.step(core, lane, Event::Map));
                }
                Heard::Answer(KEY_REGISTER, _) => {}
                Heard::Answer(key, answer) if key > KEY_CREDENTIAL => {
                    self.credential(core, (key - KEY_CREDENTIAL) as u16, answer);
                }
                Heard::Answer(lane, answer) => self.opened_mapping(core, lane as u16, answer),
            }
        }
    }

    fn opened_mapping(&mut self, core: &mut Core, lane: u16, answer: Option<Result<Response, CommandError>>) {
        let now = core.local(self.node);
        let volume = &mut self.volumes[usize::from(lane) - 1];
        if !matches!(volume.stage, Stage::Opening) {
            return;
        }
        match answer {
            Some(Ok(Response::Command(CommandAnswer::Opened { generation, .. }))) => {
                volume.stage = Stage::Waiting(generation);
                self.ask_credential(core, lane);
            }
            _ => volume.stage = Stage::Closed(now.plus_ms(200)),
        }
    }

    fn ask_credential(&mut self, core: &mut Core, lane: u16) {
        let volume = &self.volumes[usize::from(lane) - 1];
        let request = Request::Credential { volume: volume.id, opener: volume.opener };
        if let Some(control) = &mut self.control {
            control.ask(core, KEY_CREDENTIAL + u64::from(lane), request, QUESTION_MS);
        }
    }

    fn credential(&mut self, core: &mut Core, lane: u16, answer: Option<Result<Response, CommandError>>) {
        let now = core.local(self.node);
        let volume = &mut self.volumes[usize::from(lane) - 1];
        volume.renewing = false;
        let (waiting, is_open) = (matches!(volume.stage, Stage::Waiting(_)), volume.session().is_some());
        match answer {
            Some(Ok(Response::Credential(credential))) if waiting || is_open => volume.credential = Some(credential),
            Some(Err(error)) if waiting && error.code != ErrorCode::Stale && error.code != ErrorCode::NotMapped => {
                return self.ask_credential(core, lane); // not fenced yet: it goes on
            }
            _ if waiting => return self.close_volume(lane, now.plus_ms(200)),
            _ => return,
        }
        if let (Stage::Waiting(generation), Some(sdc)) = (&volume.stage, self.id) {
            let identity =
                Identity { volume: volume.id, sdc, generation: *generation, lane, first_tag: self.tag_floor };
            match Session::new(identity, Policy::default(), &self.map) {
                Ok(session) => {
                    // I17: nothing of an earlier session takes effect any more.
                    core.watch.session_opened(&mut core.history, volume.id, sdc);
                    volume.session = core.watch.session_of(volume.id, sdc);
                    volume.stage = Stage::Open(Box::new(session));
                }
                Err(_) => self.close_volume(lane, now.plus_ms(100)),
            }
        }
    }

    /// Answers to openings of the session are nobody's from now on.
    fn close_volume(&mut self, lane: u16, again: Nanos) {
        for link in self.links.values_mut() {
            link.wanted.retain(|wanted| *wanted != lane);
            link.openings.retain(|_, (of, _)| *of != lane);
        }
        self.volumes[usize::from(lane) - 1].close(again);
    }

    fn step(&mut self, core: &mut Core, lane: u16, event: Event) {
        let now = core.local(self.node);
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let Some(session) = self.volumes[usize::from(lane) - 1].session() else { return };
            let mut actions = Vec::new();
            session.step(now, &self.map, event, &mut actions);
            self.tag_floor = self.tag_floor.max(session.last_tag());
            let is_over = session.failed().is_some();
            for action in actions {
                match action {
                    Action::Open(sds) => events.extend(self.open_path(core, now, lane, sds)),
                    Action::Send(sds, request) => self.send(core, sds, &request),
                    Action::Complete(id, result) => self.volumes[usize::from(lane) - 1].complete(core, now, id, result),
                    Action::Released(_) => {}
                    Action::Suspect(sds) => {
                        if self.links.get(&sds).is_some_and(|link| now.ms_since(link.last_heard) >= SILENCE_MS) {
                            self.drop_link(core, sds);
                        }
                    }
                    Action::RenewCredential => self.renew(core, lane),
                }
            }
            if is_over {
                self.close_volume(lane, now.plus_ms(50));
            }
        }
    }

    fn renew(&mut self, core: &mut Core, lane: u16) {
        let volume = &mut self.volumes[usize::from(lane) - 1];
        if !std::mem::replace(&mut volume.renewing, true) {
            self.ask_credential(core, lane);
        }
    }

    fn open_path(&mut self, core: &mut Core, now: Nanos, lane: u16, sds: SdsId) -> Option<Event> {
        let Some(id) = self.id else { return Some(Event::Down(sds)) };
        let Some(node) = core.directory.sds_ids.get(&sds).copied() else { return Some(Event::Down(sds)) };
        if !self.links.contains_key(&sds) {
            let conn = core.dial(self.node, node, Port::Data, PeerRole::Sdc(id));
            let link = Link {
                conn,
                nonces: None,
                wanted: Vec::new(),
                openings: BTreeMap::new(),
                next_request: 0,
                last_heard: now,
            };
            self.links.insert(sds, link);
        }
        let link = self.links.get_mut(&sds)?;
        link.wanted.push(lane);
        // The dialled end must greet in bounded time too.
        link.next_request += 1;
        if link.nonces.is_none() {
            link.openings.insert(u32::MAX - u32::from(lane), (lane, now));
        }
        self.flush_openings(core, sds);
        None
    }

    fn flush_openings(&mut self, core: &mut Core, sds: SdsId) {
        let now = core.local(self.node);
        let Some(link) = self.links.get_mut(&sds) else { return };
        let Some((server, client)) = link.nonces else { return };
        for lane in std::mem::take(&mut link.wanted) {
            link.openings.remove(&(u32::MAX - u32::from(lane)));
            let Some(credential) = &self.volumes[usize::from(lane) - 1].credential else { continue };
            link.next_request += 1;
            link.openings.insert(link.next_request, (lane, now));
            let proof = client_proof(&credential.secret, &credential.ticket, sds, &server, &client);
            let open = OpenMessage::Open { request: link.next_request, ticket: credential.ticket.clone(), proof };
            core.send(link.conn, self.node, opening(&open));
        }
    }

    fn send(&self, core: &mut Core, sds: SdsId, request: &ClientRequest) {
        let Some(link) = self.links.get(&sds) else { return };
        let mut header = Vec::new();
        request.encode_header(&mut header);
        let payload = sds_api::buf::aligned(request.payload().clone());
        core.send(link.conn, self.node, Frame::new(FrameKind::ClientRequest, header, payload));
    }

    fn signal(&mut self, core: &mut Core, conn: ConnId, signal: Signal) {
        if self.control.as_ref().is_some_and(|control| control.owns(conn)) {
            self.with_control(core, |control, core, heard| control.signal(core, conn, signal, heard));
            return;
        }
        let Some(sds) = self.links.iter().find(|(_, link)| link.conn == conn).map(|(sds, _)| *sds) else { return };
        match signal {
            Signal::Frame(frame) => {
                if self.frame(core, sds, frame).is_none() {
                    self.drop_link(core, sds);
                }
            }
            Signal::Lost { .. } => self.drop_link(core, sds),
            Signal::Accepted { .. } | Signal::Connected | Signal::Written => {}
        }
    }

    fn drop_link(&mut self, core: &mut Core, sds: SdsId) {
        if let Some(link) = self.links.remove(&sds) {
            core.close(link.conn, self.node);
            (1..=self.volumes.len() as u16).for_each(|lane| self.step(core, lane, Event::Down(sds)));
        }
    }

    fn frame(&mut self, core: &mut Core, sds: SdsId, frame: Frame) -> Option<()> {
        let now = core.local(self.node);
        let (kind, header, payload) = frame.open()?;
        let link = self.links.get_mut(&sds)?;
        link.last_heard = now;
        match kind {
            FrameKind::ClientReply => {
                let reply = ClientReply::decode(&header, payload).ok()?;
                if let Err(error) = &reply.result {
                    let node = self.node;
                    core.trace.line(core.now, || format!("sdc@{node}: {sds} refuses: {error}"));
                }
                let lane = Session::lane_of(reply.tag);
                if usize::from(lane) <= self.volumes.len() && lane > 0 {
                    self.step(core, lane, Event::Reply(sds, reply));
                }
                Some(())
            }
            FrameKind::DataOpen => self.greeting(core, sds, OpenMessage::decode(&header).ok()?),
            _ => None,
        }
    }

    fn greeting(&mut self, core: &mut Core, sds: SdsId, message: OpenMessage) -> Option<()> {
        let link = self.links.get_mut(&sds)?;
        match message {
            OpenMessage::Challenge { sds: there, nonce, .. } if there == sds && link.nonces.is_none() => {
                let client = self.rng.bytes32();
                link.nonces = Some((nonce, client));
                let hello = OpenMessage::ClientHello {
                    version: OPEN_VERSION,
                    system: self.system,
                    sdc: self.id?,
                    nonce: client,
                };
                core.send(link.conn, self.node, opening(&hello));
                self.flush_openings(core, sds);
                Some(())
            }
            OpenMessage::Opened { request, handle, proof } => {
                let Some((lane, _)) = link.openings.remove(&request) else { return Some(()) };
                let (server, client) = link.nonces?;
                if let Some(credential) = &self.volumes[usize::from(lane) - 1].credential {
                    let expected = server_proof(&credential.secret, &credential.ticket, sds, &server, &client);
                    if !equal(&expected, &proof) {
                        return None;
                    }
                }
                self.step(core, lane, Event::Opened(sds, handle));
                Some(())
            }
            OpenMessage::OpenRefused { request, code, text } => {
                let Some((lane, _)) = link.openings.remove(&request) else { return Some(()) };
                let node = self.node;
                core.trace.line(core.now, || format!("sdc@{node}: {sds} refuses to open: {text}"));
                self.step(core, lane, Event::OpenRefused(sds, code));
                Some(())
            }
            _ => None,
        }
    }
}
