//! The engine: one task that drives all sessions of a client and all its connections.
//!
//! Each turn it takes what has come (answers, I/Os, a map, the time), steps the sessions, and writes what they want sent:
//! one write call per server and turn, however many requests.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use mdm_api::epoch::Nanos;
use mdm_api::error::CommandError;
use mdm_api::ids::{SdcId, SdsId, SystemId, VolumeId};
use mdm_api::map::ClusterMap;
use mdm_api::ticket::Credential;
use tokio::sync::{mpsc, oneshot, watch};

use super::answer::Answer;
use super::clock;
use super::cluster::{Cluster, Opening};
use super::connect::{ConnectError, connect};
use super::link::{Link, LinkEvent};
use super::volume::{Room, VolumeState};
use crate::io::{IoError, IoId, IoRequest};
use crate::limits::SILENCE_MS;
use crate::session::{Action, Event, Identity, Policy, Session};
use crate::stats::Stats;

/// Commands that one turn takes before the links have theirs.
const COMMANDS_PER_TURN: usize = 64;
/// How often links are looked after.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// An opening that is not answered for so long ends its link.
const OPENING_MS_MAX: u64 = 3000;
/// A link that no volume uses is kept so long.
const UNUSED_MS_MAX: u64 = 60_000;
/// Renewed credentials on their way; each volume has at most one.
const RENEWALS_MAX: usize = 64;

/// What handles ask of the engine.
#[derive(Debug)]
pub(super) enum Command {
    Open {
        volume: VolumeId,
        opening: Opening,
        policy: Policy,
        answer: oneshot::Sender<Result<(u16, watch::Receiver<VolumeState>), IoError>>,
    },
    Submit {
        lane: u16,
        token: u64,
        request: IoRequest,
        room: Room,
        answer: Answer,
    },
    Cancel {
        lane: u16,
        token: u64,
    },
    Stats {
        lane: u16,
        answer: oneshot::Sender<Stats>,
    },
    Close {
        lane: u16,
    },
}

/// An I/O whose user waits, or whose room is still taken.
struct Pending {
    token: u64,
    answer: Option<Answer>,
    _room: Room,
}

/// A session and what belongs to it.
struct Hosted {
    session: Session,
    credential: Credential,
    opener: u64,
    renewing: bool,
    pending: BTreeMap<IoId, Pending>,
    last_id: u64,
    state: watch::Sender<VolumeState>,
    /// The deadline that is noted for it.
    armed: Nanos,
}

struct Renewed {
    lane: u16,
    volume: VolumeId,
    result: Result<Opening, CommandError>,
}

pub(super) struct Engine {
    cluster: Arc<dyn Cluster>,
    system: SystemId,
    sdc: SdcId,
    map: Arc<ClusterMap>,
    lanes: BTreeMap<u16, Hosted>,
    last_lane: u16,
    /// No session of an earlier user of a lane has used a tag above.
    tag_floor: u64,
    links: BTreeMap<SdsId, Link>,
    brought: Vec<(SdsId, LinkEvent)>,
    events: VecDeque<(u16, Event)>,
    deadlines: BTreeSet<(Nanos, u16)>,
    renewals: (mpsc::Sender<Renewed>, mpsc::Receiver<Renewed>),
    now: Nanos,
    // Reused from turn to turn.
    actions: Vec<Action>,
    link_events: Vec<LinkEvent>,
}

impl Engine {
    pub fn new(cluster: Arc<dyn Cluster>, system: SystemId, sdc: SdcId) -> Self {
        let map = cluster.map().borrow().clone();
        Self {
            cluster,
            system,
            sdc,
            map,
            lanes: BTreeMap::new(),
            last_lane: 0,
            tag_floor: 0,
            links: BTreeMap::new(),
            brought: Vec::new(),
            events: VecDeque::new(),
            deadlines: BTreeSet::new(),
            renewals: mpsc::channel(RENEWALS_MAX),
            now: clock::now(),
            actions: Vec::new(),
            link_events: Vec::new(),
        }
    }

    /// Runs until nobody is left who could want anything.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut maps = self.cluster.map();
        let mut maps_end = false;
        let mut batch = Vec::with_capacity(COMMANDS_PER_TURN);
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        let mut sleep = pin!(tokio::time::sleep(HOUSEKEEPING));
        let mut armed = Nanos(0);
        loop {
            let (mut clean, mut new_map) = (false, false);
            // The order gives answers their turn first; whatever else is due is looked at in every turn below.
            tokio::select! {
                biased;
                () = poll_fn(|cx| self.poll_links(cx)) => {}
                count = commands.recv_many(&mut batch, COMMANDS_PER_TURN) => if count == 0 { return },
                () = &mut sleep => armed = Nanos(0),
                changed = maps.changed(), if !maps_end => (new_map, maps_end) = (changed.is_ok(), changed.is_err()),
                _ = housekeeping.tick() => clean = true,
            }
            self.now = clock::now();
            while batch.len() < COMMANDS_PER_TURN
                && let Ok(command) = commands.try_recv()
            {
                batch.push(command);
            }
            if new_map || maps.has_changed().unwrap_or(false) {
                self.map = maps.borrow_and_update().clone();
                self.events.extend(self.lanes.keys().map(|lane| (*lane, Event::Map)));
            }
            while let Ok(renewed) = self.renewals.1.try_recv() {
                self.take_renewed(renewed);
            }
            self.take_brought();
            batch.drain(..).for_each(|command| self.obey(command));
            if clean {
                self.look_after_links();
            }
            self.take_due();
            self.settle();
            let next = self.deadlines.first().map_or(Nanos::NEVER, |(at, _)| *at);
            if next != armed {
                armed = next;
                sleep.as_mut().reset(tokio::time::Instant::now() + clock::until(self.now, next));
            }
        }
    }

    /// Writes what is queued and collects what has come; ready if there is any.
    fn poll_links(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut progress = false;
        let now = clock::now();
        for (sds, link) in &mut self.links {
            match link.flush(cx) {
                Ok(()) => progress |= link.poll(cx, now, &mut self.link_events).is_ready(),
                Err(error) => self.link_events.push(LinkEvent::Lost(error)),
            }
            self.brought.extend(self.link_events.drain(..).map(|event| (*sds, event)));
        }
        if progress || !self.brought.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn take_brought(&mut self) {
        let mut brought = std::mem::take(&mut self.brought);
        for (sds, event) in brought.drain(..) {
            match event {
                LinkEvent::Reply(reply) => {
                    let lane = Session::lane_of(reply.tag);
                    self.events.push_back((lane, Event::Reply(sds, reply)));
                }
                LinkEvent::Opened { lane, handle } => self.events.push_back((lane, Event::Opened(sds, handle))),
                LinkEvent::OpenRefused { lane, code, text } => {
                    tracing::info!(%sds, ?code, %text, "a data server refused to open a volume");
                    self.events.push_back((lane, Event::OpenRefused(sds, code)));
                }
                LinkEvent::Up => {
                    let Some(link) = self.links.get_mut(&sds) else { continue };
                    for lane in std::mem::take(&mut link.wanted) {
                        if let Some(hosted) = self.lanes.get(&lane) {
                            link.open(lane, hosted.credential.clone(), self.now);
                        }
                    }
                }
                LinkEvent::Lost(error) => self.lose(sds, &error),
            }
        }
        self.brought = brought;
    }

    /// A link is gone: no answer of it comes after this.
    fn lose(&mut self, sds: SdsId, error: &ConnectError) {
        if self.links.remove(&sds).is_some_and(|link| link.is_up()) {
            tracing::info!(%sds, %error, "lost the connection to a data server");
        }
        self.events.extend(self.lanes.keys().map(|lane| (*lane, Event::Down(sds))));
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Open { volume, opening, policy, answer } => {
                let opened = self.host(volume, opening, policy);
                if let Err(Ok((lane, _))) = answer.send(opened) {
                    self.close(lane); // nobody waits for it any more
                }
            }
            Command::Submit { lane, token, request, room, answer } => {
                let Some(hosted) = self.lanes.get_mut(&lane) else { return };
                hosted.last_id += 1;
                let id = IoId(hosted.last_id);
                hosted.pending.insert(id, Pending { token, answer: Some(answer), _room: room });
                self.events.push_back((lane, Event::Submit(id, request)));
            }
            Command::Cancel { lane, token } => {
                let Some(hosted) = self.lanes.get(&lane) else { return };
                let id = hosted.pending.iter().find(|(_, pending)| pending.token == token).map(|(id, _)| *id);
                self.events.extend(id.map(|id| (lane, Event::Cancel(id))));
            }
            Command::Stats { lane, answer } => {
                if let Some(hosted) = self.lanes.get(&lane) {
                    // A caller that has gone away does not want it.
                    let _ = answer.send(hosted.session.stats());
                }
            }
            Command::Close { lane } => self.close(lane),
        }
    }

    fn host(
        &mut self,
        volume: VolumeId,
        opening: Opening,
        policy: Policy,
    ) -> Result<(u16, watch::Receiver<VolumeState>), IoError> {
        let lane = (1..=u16::MAX)
            .map(|step| self.last_lane.wrapping_add(step))
            .find(|lane| !self.lanes.contains_key(lane))
            .ok_or(IoError::Busy)?;
        let generation = opening.generation;
        let identity = Identity { volume, sdc: self.sdc, generation, lane, first_tag: self.tag_floor };
        let session = Session::new(identity, policy, &self.map)?;
        let state = VolumeState { size_bytes: session.size_bytes(), access: session.access(), failed: None };
        let (state, watcher) = watch::channel(state);
        let hosted = Hosted {
            session,
            credential: opening.credential,
            opener: opening.opener,
            renewing: false,
            pending: BTreeMap::new(),
            last_id: 0,
            state,
            armed: Nanos::NEVER,
        };
        self.last_lane = lane;
        self.lanes.insert(lane, hosted);
        Ok((lane, watcher))
    }

    /// Users that still wait learn that the volume was closed by their answers' being dropped.
    fn close(&mut self, lane: u16) {
        let Some(hosted) = self.lanes.remove(&lane) else { return };
        self.tag_floor = self.tag_floor.max(hosted.session.last_tag());
        self.deadlines.remove(&(hosted.armed, lane));
        self.links.values_mut().for_each(|link| link.close(lane));
    }

    fn take_due(&mut self) {
        while let Some((at, lane)) = self.deadlines.first().copied().filter(|(at, _)| *at <= self.now) {
            self.deadlines.remove(&(at, lane));
            if let Some(hosted) = self.lanes.get_mut(&lane) {
                hosted.armed = Nanos::NEVER;
                self.events.push_back((lane, Event::Tick));
            }
        }
    }

    /// Steps sessions until nothing is left to do in this turn.
    fn settle(&mut self) {
        while let Some((lane, event)) = self.events.pop_front() {
            let Some(hosted) = self.lanes.get_mut(&lane) else { continue };
            let follows_map = matches!(event, Event::Map);
            let mut actions = std::mem::take(&mut self.actions);
            hosted.session.step(self.now, &self.map, event, &mut actions);
            let due = hosted.session.next_deadline();
            if due < hosted.armed {
                self.deadlines.remove(&(hosted.armed, lane));
                self.deadlines.insert((due, lane));
                hosted.armed = due;
            }
            if follows_map || hosted.session.failed().is_some() {
                hosted.publish();
            }
            actions.drain(..).for_each(|action| self.carry_out(lane, action));
            self.actions = actions;
        }
    }

    fn carry_out(&mut self, lane: u16, action: Action) {
        match action {
            Action::Send(sds, request) => {
                if let Some(link) = self.links.get_mut(&sds) {
                    link.send(&request);
                }
            }
            Action::Complete(id, result) => {
                let hosted = self.lanes.get_mut(&lane);
                let pending = hosted.and_then(|hosted| hosted.pending.get_mut(&id));
                if let Some(answer) = pending.and_then(|pending| pending.answer.take()) {
                    answer.send(result);
                }
            }
            Action::Released(id) => {
                if let Some(hosted) = self.lanes.get_mut(&lane) {
                    hosted.pending.remove(&id);
                }
            }
            Action::Open(sds) => self.open_path(lane, sds),
            Action::Suspect(sds) => {
                let silent = |link: &Link| link.is_up() && self.now.ms_since(link.last_heard) >= SILENCE_MS;
                if self.links.get(&sds).is_some_and(silent) {
                    self.lose(sds, &ConnectError::TimedOut);
                }
            }
            Action::RenewCredential => self.renew(lane),
        }
    }

    fn open_path(&mut self, lane: u16, sds: SdsId) {
        let Some(hosted) = self.lanes.get(&lane) else { return };
        let link = self.links.entry(sds).or_insert_with(|| {
            let addresses = self.map.sds(sds).map(|sds| sds.addresses.clone()).unwrap_or_default();
            Link::new(Box::pin(connect(addresses, self.system, sds, self.sdc)), self.now)
        });
        if link.is_up() {
            link.open(lane, hosted.credential.clone(), self.now);
        } else {
            link.wanted.push(lane);
        }
    }

    fn renew(&mut self, lane: u16) {
        let Some(hosted) = self.lanes.get_mut(&lane).filter(|hosted| !hosted.renewing) else { return };
        hosted.renewing = true;
        let volume = hosted.session.identity().volume;
        let (opening, renewals) = (self.cluster.renew(volume, hosted.opener), self.renewals.0.clone());
        tokio::spawn(async move {
            let renewed = Renewed { lane, volume, result: opening.await };
            if renewals.send(renewed).await.is_err() {
                tracing::debug!("the client was closed");
            }
        });
    }

    fn take_renewed(&mut self, renewed: Renewed) {
        let hosted = self.lanes.get_mut(&renewed.lane);
        let Some(hosted) = hosted.filter(|hosted| hosted.session.identity().volume == renewed.volume) else { return };
        hosted.renewing = false;
        match renewed.result {
            // Another generation is another session: this one is fenced, and hears so from the map or a server.
            Ok(opening) if opening.generation == hosted.session.identity().generation => {
                hosted.credential = opening.credential;
            }
            Ok(opening) => {
                tracing::warn!(volume = %renewed.volume, generation = %opening.generation, "mapping reopened")
            }
            Err(error) => tracing::warn!(volume = %renewed.volume, %error, "no new ticket"),
        }
    }

    fn look_after_links(&mut self) {
        let now = self.now;
        self.links
            .retain(|_, link| !(link.is_unused() && link.is_up() && now.ms_since(link.last_heard) > UNUSED_MS_MAX));
        let stuck = |link: &Link| link.oldest_opening().is_some_and(|at| now.ms_since(at) > OPENING_MS_MAX);
        let stuck: Vec<SdsId> = self.links.iter().filter(|(_, link)| stuck(link)).map(|(sds, _)| *sds).collect();
        stuck.into_iter().for_each(|sds| self.lose(sds, &ConnectError::TimedOut));
    }
}

impl Hosted {
    fn publish(&self) {
        let (session, now) = (&self.session, &self.state);
        let new = VolumeState {
            size_bytes: session.size_bytes(),
            access: session.access(),
            failed: session.failed().cloned(),
        };
        now.send_if_modified(|state| {
            let changed = *state != new;
            *state = new;
            changed
        });
    }
}
