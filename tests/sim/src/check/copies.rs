//! Are all in-sync copies the same? The devices are opened as after a restart and every chunk layer is compared.

use std::collections::{BTreeMap, VecDeque};

use mdm_api::epoch::{Nanos, Version};
use mdm_api::ids::{DeviceId, PgId};
use sds_api::block::{BlockRange, LayerKey};
use sds_store::blockmap::BlockMap;
use sds_store::io::DiskRequest;
use sds_store::open::{OpenParameters, Opener};
use sds_store::request::{Answer, Event, LayerContent, Output, RecoveredPg, Request, Token, Verdict};
use sds_store::store::{Options, Store};

use crate::disk::Disk;

/// A device, read back.
pub struct Copy<'a> {
    disk: &'a mut Disk,
    store: Store,
    groups: Vec<RecoveredPg>,
    /// How far it can be believed.
    pub verdict: Verdict,
}

/// What a group holds on a device.
pub type Content = BTreeMap<LayerKey, Held>;

/// One layer of a chunk, as far as it can be read.
pub struct Held {
    version: Version,
    present: BlockMap,
    /// Nothing if one of its blocks is bad: what metadata says is compared all the same.
    content: Option<LayerContent>,
}

impl<'a> Copy<'a> {
    /// Opens the device as its server would.
    pub fn open(disk: &'a mut Disk) -> Result<Self, String> {
        let parameters =
            OpenParameters { size_bytes: disk.size(), options: Options::default(), ..OpenParameters::default() };
        let mut opener = Opener::new(parameters);
        let mut requests: Vec<DiskRequest> = Vec::new();
        opener.start(&mut requests).map_err(|error| error.to_string())?;
        let mut queue = VecDeque::from(requests);
        while let Some(request) = queue.pop_front() {
            let mut more = Vec::new();
            match opener.step(disk.at_once(request), &mut more) {
                None => queue.extend(more),
                Some(Ok(opened)) => {
                    let mut copy = Self {
                        disk,
                        store: opened.store,
                        groups: opened.recovered.pgs,
                        verdict: opened.recovered.verdict,
                    };
                    copy.commit_all();
                    return Ok(copy);
                }
                Some(Err(error)) => return Err(error.to_string()),
            }
        }
        Err("the opening stands still".to_owned())
    }

    /// Nothing is under way any more: all that is there was committed.
    fn commit_all(&mut self) {
        for group in self.groups.clone() {
            let through = group.entries.last().map(|recovered| recovered.entry.version.seq);
            let saved = group.state.as_ref().map(|(seq, _)| *seq);
            let Some(through) = through.max(saved) else { continue };
            let mut outputs = Vec::new();
            let request = Request::Commit { pg: group.pg, through };
            self.store.step(Nanos(0), Event::Request { token: Token(0), request }, &mut outputs);
            self.settle(outputs);
        }
    }

    /// What it holds of a group. Blocks may be bad only if `may_be_bad`.
    pub fn content(&mut self, pg: PgId, may_be_bad: bool) -> Result<Content, String> {
        let Answer::Chunks(layers) = self.ask(Request::ListChunks { pg })? else { return Err("no list".to_owned()) };
        let mut content = Content::new();
        for (layer, version) in layers {
            let Answer::Status(present) = self.ask(Request::Status { layer, blocks: BlockRange::WHOLE })? else {
                return Err("no status".to_owned());
            };
            let captured = match self.ask(Request::Capture { layer }) {
                Ok(Answer::Captured(captured)) => Some(captured),
                Ok(_) => return Err("no copy".to_owned()),
                // Nobody has read it yet.
                Err(_) if may_be_bad => None,
                Err(text) => return Err(text),
            };
            let whole = captured.map(|captured| {
                // A chunk has one layer as long as there are no snapshots: what was zeroed in it and what was never written
                // are the same to everybody.
                LayerContent { data: vec![captured.data.concat().into()], zeroed: BlockMap::EMPTY, ..captured }
            });
            content.insert(layer, Held { version, present, content: whole });
        }
        Ok(content)
    }

    fn ask(&mut self, request: Request) -> Result<Answer, String> {
        let mut outputs = Vec::new();
        self.store.step(Nanos(0), Event::Request { token: Token(1), request }, &mut outputs);
        self.settle(outputs).ok_or("no answer")?
    }

    fn settle(&mut self, outputs: Vec<Output>) -> Option<Result<Answer, String>> {
        let mut queue = VecDeque::from(outputs);
        let mut answer = None;
        while let Some(output) = queue.pop_front() {
            match output {
                Output::Disk(request) => {
                    let done = self.disk.at_once(request);
                    let mut more = Vec::new();
                    self.store.step(Nanos(0), Event::Disk(done), &mut more);
                    queue.extend(more);
                }
                Output::Done { token: Token(1), result } => answer = Some(result.map_err(|error| error.to_string())),
                Output::Done { .. } | Output::WantState { .. } | Output::BadBlock { .. } | Output::Damaged { .. } => {}
                Output::Failed { cause } => return Some(Err(format!("the store failed: {cause}"))),
            }
        }
        answer
    }
}

impl Held {
    /// True if nothing speaks against both being copies of the same.
    fn agrees(&self, other: &Self) -> bool {
        let is_whole = self.content.is_some() && other.content.is_some();
        (self.version, self.present) == (other.version, other.present) && (!is_whole || self.content == other.content)
    }
}

/// Compares what two members hold.
pub fn compare(pg: PgId, left: (DeviceId, &Content), right: (DeviceId, &Content)) -> Result<(), String> {
    let keys = left.1.keys().chain(right.1.keys());
    for key in keys {
        let (mine, theirs) = (left.1.get(key), right.1.get(key));
        if mine.zip(theirs).is_some_and(|(mine, theirs)| mine.agrees(theirs)) {
            continue;
        }
        let show = |held: Option<&Held>| {
            held.map_or("nothing".to_owned(), |held| {
                let blocks: Vec<u16> = held.present.iter().collect();
                format!("{:?}, blocks {blocks:?}", held.version)
            })
        };
        return Err(format!(
            "I23: {key:?} of {pg} differs: {} has {}, {} has {}",
            left.0,
            show(mine),
            right.0,
            show(theirs)
        ));
    }
    Ok(())
}
