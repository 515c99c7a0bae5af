//! A daemon's conversation with the metadata manager: one line to each member, questions that find the leader, the map
//! followed from whichever member answers.

use std::collections::BTreeMap;

use mdm_api::control::{ControlMessage, Heartbeat, PeerRole, Request, RequestError, Response, decode, encode};
use mdm_api::epoch::{Nanos, Revision};
use mdm_api::error::CommandError;
use mdm_api::frame::FrameKind;
use mdm_api::limits::{FOLLOW_SILENCE_MS, FOLLOW_SILENCE_MS_MAX};
use mdm_api::map::{MapDelta, MapView};

use crate::core::Core;
use crate::net::{ConnId, Frame, NodeId, Port, Signal};

/// How long a member has to answer before the next is asked, in milliseconds.
const TRY_MS: u64 = 1500;
/// How long after a lost line the next is dialled.
const REDIAL_MS: u64 = 200;
/// Pause before another member is asked.
const TURN_MS: u64 = 50;
/// The number of the login on each line.
const LOGIN: u64 = 0;

/// What came.
#[derive(Debug)]
pub enum Heard {
    /// The answer to a question; `None`: nobody answered in time.
    Answer(u64, Option<Result<Response, CommandError>>),
    /// A step of the map.
    Delta(MapDelta),
}

struct Line {
    conn: ConnId,
    is_up: bool,
}

struct Asked {
    key: u64,
    request: Request,
    member: usize,
    sent_on: Option<ConnId>,
    not_before: Nanos,
    try_until: Nanos,
    give_up: Nanos,
}

/// See the module.
pub struct Control {
    node: NodeId,
    role: PeerRole,
    lines: BTreeMap<(NodeId, bool), Line>,
    redial: BTreeMap<(NodeId, bool), Nanos>,
    asked: BTreeMap<u64, Asked>,
    next: u64,
    leader: usize,
    follows: Option<(MapView, usize)>,
    following: Option<ConnId>,
    /// When the member that is followed last said something, and how long it may be silent.
    heard_at: Nanos,
    patience_ms: u64,
    /// The map's revision that is held; the follower keeps it up to date.
    pub have: Revision,
    /// Kept open to every member for heartbeats.
    heartbeats: bool,
}

impl Control {
    /// A new process's conversation.
    pub fn new(node: NodeId, role: PeerRole, follows: Option<MapView>, heartbeats: bool, turn: usize) -> Self {
        Self {
            node,
            role,
            lines: BTreeMap::new(),
            redial: BTreeMap::new(),
            asked: BTreeMap::new(),
            next: 0,
            leader: turn,
            follows: follows.map(|view| (view, turn)),
            following: None,
            heard_at: Nanos(0),
            patience_ms: FOLLOW_SILENCE_MS,
            have: Revision(0),
            heartbeats,
        }
    }

    fn members(core: &Core) -> &[NodeId] {
        &core.directory.mdm_nodes
    }

    /// Asks; the answer comes under the key.
    pub fn ask(&mut self, core: &mut Core, key: u64, request: Request, give_up_ms: u64) {
        self.next += 1;
        let now = core.local(self.node);
        let asked = Asked {
            key,
            request,
            member: self.leader,
            sent_on: None,
            not_before: now,
            try_until: now.plus_ms(TRY_MS),
            give_up: now.plus_ms(give_up_ms),
        };
        self.asked.insert(self.next, asked);
        self.work(core);
    }

    /// Forgets the questions; no answer comes to any of them.
    pub fn forget_questions(&mut self) {
        self.asked.clear();
    }

    /// Sends a heartbeat to every member that can be reached.
    pub fn beat(&mut self, core: &mut Core, heartbeat: &Heartbeat) {
        let bytes = encode(&ControlMessage::Heartbeat(Box::new(heartbeat.clone())));
        for ((_, is_heartbeat), line) in &self.lines {
            if *is_heartbeat && line.is_up {
                core.send(line.conn, self.node, Frame::new(FrameKind::Control, bytes.clone(), bytes::Bytes::new()));
            }
        }
    }

    /// Forgets the map and follows it from nothing.
    pub fn follow_anew(&mut self, core: &mut Core) {
        self.have = Revision(0);
        if let Some(conn) = self.following.take() {
            self.drop_line(core, conn);
        }
        self.work(core);
    }

    fn drop_line(&mut self, core: &mut Core, conn: ConnId) {
        core.close(conn, self.node);
        self.lost(core, conn);
    }

    fn lost(&mut self, core: &mut Core, conn: ConnId) {
        let Some(key) = self.lines.iter().find(|(_, line)| line.conn == conn).map(|(key, _)| *key) else { return };
        self.lines.remove(&key);
        self.redial.insert(key, core.local(self.node).plus_ms(REDIAL_MS));
        if self.following == Some(conn) {
            self.following = None;
            self.turn_follower();
        }
        for asked in self.asked.values_mut() {
            if asked.sent_on == Some(conn) {
                asked.sent_on = None;
                asked.member += 1;
            }
        }
    }

    fn turn_follower(&mut self) {
        if let Some((_, turn)) = &mut self.follows {
            *turn += 1;
        }
    }

    /// True if the connection is one of these lines.
    pub fn owns(&self, conn: ConnId) -> bool {
        self.lines.values().any(|line| line.conn == conn)
    }

    /// Something came over one of the lines.
    pub fn signal(&mut self, core: &mut Core, conn: ConnId, signal: Signal, out: &mut Vec<Heard>) {
        match signal {
            Signal::Connected => {
                if self.role == PeerRole::Tool {
                    let request = Request::Login { user: "admin".to_owned(), password: "right".to_owned() };
                    self.put(core, conn, LOGIN, request);
                } else {
                    self.line_is_up(conn);
                }
            }
            Signal::Frame(frame) => match frame.open().map(|(kind, header, _)| (kind, decode(&header))) {
                Some((FrameKind::Control, Ok(message))) => self.message(core, conn, message, out),
                _ => self.drop_line(core, conn),
            },
            Signal::Lost { .. } => self.lost(core, conn),
            Signal::Accepted { .. } | Signal::Written => {}
        }
        self.work(core);
    }

    fn put(&self, core: &mut Core, conn: ConnId, id: u64, request: Request) {
        let message = encode(&ControlMessage::Request { id, request: Box::new(request) });
        core.send(conn, self.node, Frame::new(FrameKind::Control, message, bytes::Bytes::new()));
    }

    fn line_is_up(&mut self, conn: ConnId) {
        self.lines.values_mut().filter(|line| line.conn == conn).for_each(|line| line.is_up = true);
    }

    fn message(&mut self, core: &mut Core, conn: ConnId, message: ControlMessage, out: &mut Vec<Heard>) {
        match message {
            ControlMessage::Response { id: LOGIN, result: Ok(_) } => self.line_is_up(conn),
            // A member that has not received the state yet.
            ControlMessage::Response { id: LOGIN, result: Err(_) } => self.drop_line(core, conn),
            ControlMessage::Response { id, result } => self.answered(core, id, result, out),
            ControlMessage::Push(delta) if self.following == Some(conn) => {
                (self.heard_at, self.patience_ms) = (core.local(self.node), FOLLOW_SILENCE_MS);
                if delta.to <= self.have {
                    return;
                }
                if delta.from != self.have && delta.from != Revision(0) {
                    return self.drop_line(core, conn);
                }
                self.have = delta.to;
                out.push(Heard::Delta(delta));
            }
            ControlMessage::Refused { .. } => self.drop_line(core, conn),
            _ => {}
        }
    }

    fn answered(
        &mut self,
        core: &mut Core,
        id: u64,
        result: Result<Box<Response>, RequestError>,
        out: &mut Vec<Heard>,
    ) {
        let Some(asked) = self.asked.get_mut(&id) else { return };
        let now = core.local(self.node);
        match result {
            Ok(response) => {
                self.leader = asked.member;
                out.push(Heard::Answer(asked.key, Some(Ok(*response))));
                self.asked.remove(&id);
            }
            Err(RequestError::Refused(error)) => {
                out.push(Heard::Answer(asked.key, Some(Err(error))));
                self.asked.remove(&id);
            }
            Err(RequestError::NotLeader(leader)) => {
                let known = leader.and_then(|leader| core.directory.mdm_ids.get(&leader.id).copied());
                let place = known.and_then(|node| Self::members(core).iter().position(|member| *member == node));
                asked.member = place.unwrap_or(asked.member + 1);
                asked.sent_on = None;
                // Not at once: an election takes its time.
                asked.not_before = now.plus_ms(TURN_MS);
                asked.try_until = now.plus_ms(TURN_MS + TRY_MS);
            }
        }
    }

    fn line(&mut self, core: &mut Core, member: NodeId, is_heartbeat: bool) -> Option<ConnId> {
        let key = (member, is_heartbeat);
        if let Some(line) = self.lines.get(&key) {
            return line.is_up.then_some(line.conn);
        }
        if self.redial.get(&key).is_some_and(|at| *at > core.local(self.node)) {
            return None;
        }
        let conn = core.dial(self.node, member, Port::Control, self.role);
        self.lines.insert(key, Line { conn, is_up: false });
        None
    }

    /// Does what is due.
    pub fn work(&mut self, core: &mut Core) {
        let now = core.local(self.node);
        let members = Self::members(core).to_vec();
        if members.is_empty() {
            return;
        }
        if self.heartbeats {
            for member in &members {
                self.line(core, *member, true);
            }
        }
        if let Some((view, turn)) = self.follows
            && self.following.is_none()
        {
            let member = members[turn % members.len()];
            match self.line(core, member, false) {
                Some(conn) => {
                    let message = encode(&ControlMessage::Follow { view, have: self.have });
                    core.send(conn, self.node, Frame::new(FrameKind::Control, message, bytes::Bytes::new()));
                    self.following = Some(conn);
                    self.heard_at = now;
                }
                // Down: another one, if this one is not just being called.
                None if !self.lines.contains_key(&(member, false)) => self.turn_follower(),
                None => {}
            }
        }
        let ids: Vec<u64> = self.asked.keys().copied().collect();
        for id in ids {
            let Some(asked) = self.asked.get_mut(&id) else { continue };
            if asked.try_until <= now {
                asked.member += 1;
                asked.sent_on = None;
                asked.try_until = now.plus_ms(TRY_MS);
            }
            if asked.sent_on.is_some() || asked.not_before > now {
                continue;
            }
            let member = members[asked.member % members.len()];
            let request = asked.request.clone();
            if let Some(conn) = self.line(core, member, false) {
                self.put(core, conn, id, request);
                if let Some(asked) = self.asked.get_mut(&id) {
                    asked.sent_on = Some(conn);
                }
            }
        }
    }

    /// Time has passed.
    pub fn wake(&mut self, core: &mut Core, out: &mut Vec<Heard>) {
        let now = core.local(self.node);
        self.redial.retain(|_, at| *at > now);
        if let Some(conn) = self.following
            && now.ms_since(self.heard_at) >= self.patience_ms
        {
            self.patience_ms = (2 * self.patience_ms).min(FOLLOW_SILENCE_MS_MAX);
            self.drop_line(core, conn);
        }
        let over: Vec<u64> = self.asked.iter().filter(|(_, asked)| asked.give_up <= now).map(|(id, _)| *id).collect();
        for id in over {
            if let Some(asked) = self.asked.remove(&id) {
                out.push(Heard::Answer(asked.key, None));
            }
        }
        self.work(core);
    }

    /// When [`Control::wake`] is due.
    pub fn deadline(&self, now: Nanos) -> Nanos {
        let due = |asked: &Asked| match asked.sent_on {
            None if asked.not_before > now => asked.not_before.min(asked.give_up),
            _ => asked.try_until.min(asked.give_up),
        };
        let asked = self.asked.values().map(due).min();
        let redial = self.redial.values().min().copied();
        let silent = self.following.map(|_| self.heard_at.plus_ms(self.patience_ms));
        [asked, redial, silent].into_iter().flatten().min().unwrap_or(Nanos::NEVER)
    }
}
