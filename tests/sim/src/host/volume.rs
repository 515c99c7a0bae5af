//! A mapped volume at a client: opened, used by its workers, opened anew when its session is over.

use std::collections::BTreeMap;

use mdm_api::epoch::{AttachGeneration, Nanos};
use mdm_api::ids::VolumeId;
use mdm_api::ticket::Credential;
use sdc_client::io::{IoError, IoId, IoOutput};
use sdc_client::session::Session;

use crate::clock::SECOND;
use crate::core::Core;
use crate::history::{Kind, seen};
use crate::rng::Rng;
use crate::workload::{Drawn, draw, everything};

/// Where the opening stands.
pub enum Stage {
    /// Not open; tried again at that time.
    Closed(Nanos),
    /// A generation was asked for.
    Opening,
    /// The credential was asked for.
    Waiting(AttachGeneration),
    /// In use.
    Open(Box<Session>),
}

/// A request under way.
struct Running {
    op: Option<usize>,
    worker: usize,
    offset: u64,
    reads: usize,
    is_last: bool,
}

struct Worker {
    next: Nanos,
    busy: bool,
}

/// See the module.
pub struct Volume {
    /// Which.
    pub id: VolumeId,
    /// Its place in the plan.
    pub place: u8,
    /// Where the opening stands.
    pub stage: Stage,
    /// Drawn for each opening.
    pub opener: u64,
    /// What opens it at servers.
    pub credential: Option<Credential>,
    /// A new credential was asked for.
    pub renewing: bool,
    /// Names the session in the history.
    pub session: u32,
    last_io: u64,
    running: BTreeMap<IoId, Running>,
    workers: Vec<Worker>,
    /// What is still to be read at the end; empty before.
    last_reads: Vec<Drawn>,
    rng: Rng,
}

impl Volume {
    /// Not open yet.
    pub fn new(id: VolumeId, place: u8, workers: usize, rng: Rng) -> Self {
        Self {
            id,
            place,
            stage: Stage::Closed(Nanos(0)),
            opener: 0,
            credential: None,
            renewing: false,
            session: 0,
            last_io: 0,
            running: BTreeMap::new(),
            workers: (0..workers).map(|_| Worker { next: Nanos(0), busy: false }).collect(),
            last_reads: Vec::new(),
            rng,
        }
    }

    /// The session, while it is open.
    pub fn session(&mut self) -> Option<&mut Session> {
        match &mut self.stage {
            Stage::Open(session) => Some(session),
            _ => None,
        }
    }

    /// The session is over: what was not answered stays so.
    pub fn close(&mut self, again: Nanos) {
        self.stage = Stage::Closed(again);
        self.credential = None;
        self.renewing = false;
        self.running.clear();
        self.workers.iter_mut().for_each(|worker| worker.busy = false);
    }

    /// Requests whose time has come, in order.
    pub fn due(&mut self, core: &mut Core, now: Nanos) -> Vec<(IoId, sdc_client::io::IoRequest)> {
        let mut list = Vec::new();
        if !matches!(self.stage, Stage::Open(_)) {
            return list;
        }
        for worker in 0..self.workers.len() {
            if self.workers[worker].busy || self.workers[worker].next > now {
                continue;
            }
            let (drawn, is_last) = if core.directory.load {
                let (chunks, mix) = (core.plan.chunks, core.plan.mix);
                let turn = core.now.checked_div(core.plan.linger);
                let focus = turn.map(|turn| (turn + u64::from(self.place)) % chunks);
                (draw(&mut self.rng, &mut core.history, self.place, chunks, focus, mix), false)
            } else if let Some(drawn) = self.last_reads.pop() {
                (drawn, true)
            } else {
                continue;
            };
            self.workers[worker].busy = true;
            self.last_io += 1;
            let id = IoId(self.last_io);
            let op = if !drawn.writes.is_empty() {
                Some(core.history.begin(self.session, Kind::Write, drawn.writes))
            } else if drawn.reads > 0 {
                Some(core.history.begin(self.session, Kind::Read, Vec::new()))
            } else {
                None
            };
            let place = self.place;
            core.trace.line(core.now, || format!("volume {place}: {id:?} {:?} op {op:?}", drawn.request));
            self.running.insert(id, Running { op, worker, offset: drawn.offset, reads: drawn.reads, is_last });
            list.push((id, drawn.request));
        }
        list
    }

    /// A request came to its end.
    pub fn complete(&mut self, core: &mut Core, now: Nanos, id: IoId, result: Result<IoOutput, IoError>) {
        let Some(running) = self.running.remove(&id) else { return };
        let workers = (core.directory.mappings.len() * self.workers.len()).max(1) as u64;
        let think = self.rng.around(workers * SECOND / core.plan.rate);
        let worker = &mut self.workers[running.worker];
        worker.busy = false;
        worker.next = Nanos(now.0 + if core.directory.load { think } else { 0 });
        let place = self.place;
        core.trace.line(core.now, || match &result {
            Ok(_) => format!("volume {place}: {id:?} done"),
            Err(error) => format!("volume {place}: {id:?} failed: {error}"),
        });
        match (result, running.op) {
            (Ok(IoOutput::Data(pieces)), Some(op)) => {
                let bytes = pieces.concat();
                if bytes.len() != running.reads {
                    core.watch.fail(core.now, format!("{} bytes were asked for, {} came", running.reads, bytes.len()));
                }
                match seen(self.place, running.offset, &bytes) {
                    Ok(cells) => core.history.done(op, Some(cells)),
                    Err(error) => core.watch.fail(core.now, format!("op {op}: {error}")),
                }
            }
            (Ok(_), Some(op)) => core.history.done(op, None),
            (Ok(_), None) => core.history.answered += 1,
            (Err(IoError::Medium), _) => core.watch.medium_error(core.now, &mut core.history),
            (Err(IoError::Revoked | IoError::Closed | IoError::VolumeGone), _) => {
                if running.is_last && running.reads > 0 {
                    self.last_reads.push(crate::workload::read(running.offset, running.reads));
                }
            }
            (Err(error), _) => {
                core.history.errors += 1;
                core.watch.fail(core.now, format!("an I/O failed: {error}"));
            }
        }
    }

    /// The load has ended: everything is read once more.
    pub fn read_everything(&mut self, chunks: u64) {
        self.last_reads = everything(chunks).collect();
    }

    /// One more request, besides the load.
    pub fn ask(&mut self, drawn: Drawn) {
        self.last_reads.push(drawn);
    }

    /// True once nothing is under way nor to be done.
    pub fn is_quiet(&self) -> bool {
        self.running.is_empty() && self.last_reads.is_empty()
    }

    /// What it waits for, for people.
    pub fn describe(&self) -> String {
        let stage = match &self.stage {
            Stage::Closed(_) => "closed",
            Stage::Opening => "opening",
            Stage::Waiting(_) => "waiting for its credential",
            Stage::Open(_) => "open",
        };
        let ids: Vec<u64> = self.running.keys().map(|id| id.0).collect();
        format!("volume {} is {stage}, waits for I/Os {ids:?}, {} reads to go", self.place, self.last_reads.len())
    }

    /// When a worker wants its next request.
    pub fn deadline(&self, has_load: bool) -> Nanos {
        match self.stage {
            Stage::Closed(again) => again,
            Stage::Open(ref session) => {
                let wants = has_load || !self.last_reads.is_empty();
                let idle = self.workers.iter().filter(|worker| !worker.busy && wants).map(|worker| worker.next).min();
                idle.unwrap_or(Nanos::NEVER).min(session.next_deadline())
            }
            Stage::Opening | Stage::Waiting(_) => Nanos::NEVER,
        }
    }
}
