//! A model of the store of one device: journal with a durable prefix, content by committed entries, crash.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use mdm_api::epoch::{Seq, Term, Version};
use sds_api::block::{BLOCK_BYTES, BlockRange, LayerKey};
use sds_api::checksum::crc32c;
use sds_api::entry::{Entry, EntryBody};
use sds_api::peer::{BlocksData, LayerCopy};
use sds_replica::{Recovered, StoreDone, StoreRequest, Token, Verdict};

#[derive(Clone, Default, Debug)]
pub struct Layer {
    pub version: Version,
    pub blocks: BTreeMap<u16, Bytes>,
}

/// What the store has, as a function of the records so far.
#[derive(Clone, Default)]
struct Image {
    promised: Term,
    state: Option<(Seq, Bytes)>,
    entries: BTreeMap<Seq, Entry>,
    layers: BTreeMap<LayerKey, Layer>,
}

#[derive(Clone)]
enum Record {
    Append(Vec<Entry>),
    Promise(Term),
    State(Seq, Bytes),
    Void(Seq),
    Install(LayerKey, LayerCopy),
    Remove(Vec<LayerKey>),
    Forget,
}

pub struct Store {
    /// As of the start of `journal`.
    home: Image,
    journal: VecDeque<(Token, Record)>,
    /// Records of `journal` that a power cut leaves.
    durable: usize,
    /// What this process sees.
    live: Image,
    committed: Seq,
    pub bad: BTreeSet<(LayerKey, u16)>,
    /// Acts of commit, for the checker: entries in the order in which they were committed here.
    pub newly_committed: Vec<Entry>,
}

fn apply(layers: &mut BTreeMap<LayerKey, Layer>, entry: &Entry) {
    match &entry.body {
        EntryBody::Write { layer, blocks, data, .. } => {
            let layer = layers.entry(*layer).or_default();
            if layer.version < entry.version {
                layer.version = entry.version;
                for (block, content) in blocks.iter().zip(data.chunks(BLOCK_BYTES)) {
                    layer.blocks.insert(block, data.slice_ref(content));
                }
            }
        }
        EntryBody::Zero { layer, blocks } => {
            let layer = layers.entry(*layer).or_default();
            if layer.version < entry.version {
                layer.version = entry.version;
                blocks.iter().for_each(|block| drop(layer.blocks.remove(&block)));
            }
        }
        EntryBody::DropVtree { vtree } => layers.retain(|key, _| key.chunk.vtree != *vtree),
        EntryBody::EpochStart { .. } | EntryBody::Elsewhere { .. } => {}
    }
}

impl Image {
    fn take(&mut self, record: &Record) {
        match record {
            Record::Append(entries) => {
                for entry in entries {
                    let last = self.entries.keys().next_back().copied().unwrap_or_default();
                    let last = last.max(self.state.as_ref().map_or(Seq(0), |(through, _)| *through));
                    assert_eq!(entry.version.seq, last.next(), "appends are dense");
                    self.entries.insert(entry.version.seq, entry.clone());
                }
            }
            Record::Promise(term) => {
                assert!(*term >= self.promised, "promises grow");
                self.promised = *term;
            }
            Record::State(through, state) => {
                let rest = self.entries.split_off(&through.next());
                for entry in self.entries.values() {
                    apply(&mut self.layers, entry);
                }
                self.entries = rest;
                self.state = Some((*through, state.clone()));
            }
            Record::Void(after) => drop(self.entries.split_off(&after.next())),
            Record::Install(key, copy) => {
                let present =
                    (0..256_u16).filter(|block| copy.presence[usize::from(block / 64)] >> (block % 64) & 1 == 1);
                let data = copy.data.concat();
                let contents = data.chunks(BLOCK_BYTES).map(Bytes::copy_from_slice);
                let layer = Layer { version: copy.version, blocks: present.zip(contents).collect() };
                self.layers.insert(*key, layer);
            }
            Record::Remove(keys) => keys.iter().for_each(|key| drop(self.layers.remove(key))),
            Record::Forget => *self = Self::default(),
        }
    }
}

impl Store {
    pub fn new() -> Self {
        Self {
            home: Image::default(),
            journal: VecDeque::new(),
            durable: 0,
            live: Image::default(),
            committed: Seq(0),
            bad: BTreeSet::new(),
            newly_committed: Vec::new(),
        }
    }

    /// Takes a request; an answer that needs no disk comes at once, the others when [`Store::write`] makes them durable.
    pub fn request(&mut self, token: Token, request: StoreRequest) -> Option<StoreDone> {
        let record = match request {
            StoreRequest::Append { entries } => Record::Append(entries),
            StoreRequest::Promise { term, .. } => Record::Promise(term),
            StoreRequest::SaveState { through, state, .. } => {
                assert!(through >= self.committed, "a state is not older than what is committed");
                self.committed = through;
                Record::State(through, state)
            }
            StoreRequest::Void { after, .. } => {
                assert!(after >= self.committed, "a committed entry is voided");
                Record::Void(after)
            }
            StoreRequest::Install { layer, copy, .. } => {
                self.bad.retain(|(key, _)| *key != layer);
                Record::Install(layer, copy)
            }
            StoreRequest::RemoveLayers { layers, .. } => Record::Remove(layers),
            StoreRequest::ForgetPg { .. } => {
                self.committed = Seq(0);
                Record::Forget
            }
            StoreRequest::Commit { through, .. } => {
                self.commit(through);
                return None;
            }
            StoreRequest::Repair { layer, block, checksum, data, .. } => {
                assert_eq!(crc32c(&data), checksum);
                let held = self.live.layers.get(&layer).and_then(|layer| layer.blocks.get(&block));
                // Another content is refused: a secondary may not know yet of the write that its primary's copy has.
                if held.map_or(&[0; BLOCK_BYTES][..], |held| &held[..]) == &data[..] {
                    self.bad.remove(&(layer, block));
                }
                return Some(StoreDone::Durable);
            }
            StoreRequest::Read { layer, blocks } => return Some(self.read(layer, blocks)),
            StoreRequest::Status { layer, blocks } => {
                let held = self.live.layers.get(&layer);
                let flag = |block| held.is_some_and(|layer| layer.blocks.contains_key(&block));
                return Some(StoreDone::Status(blocks.iter().map(flag).collect()));
            }
            StoreRequest::ListChunks { .. } => {
                let list = self.live.layers.iter().map(|(key, layer)| (*key, layer.version));
                return Some(StoreDone::Chunks(list.collect()));
            }
            StoreRequest::Capture { layer } => return Some(self.capture(layer)),
        };
        self.live.take(&record);
        self.journal.push_back((token, record));
        None
    }

    fn commit(&mut self, through: Seq) {
        assert!(through > self.committed, "commits grow");
        for (_, entry) in self.live.entries.range(self.committed.next()..=through) {
            apply(&mut self.live.layers, entry);
            self.newly_committed.push(entry.clone());
            if let EntryBody::Write { layer, blocks, .. } | EntryBody::Zero { layer, blocks } = &entry.body {
                self.bad.retain(|(key, block)| key != layer || !blocks.iter().any(|written| written == *block));
            }
        }
        let last = self.live.entries.keys().next_back().copied().unwrap_or_default();
        assert!(last >= through, "commit {through:?} beyond {last:?}");
        self.committed = through;
    }

    fn bad_in(&self, key: LayerKey, blocks: impl Iterator<Item = u16>) -> Vec<u16> {
        blocks.filter(|block| self.bad.contains(&(key, *block))).collect()
    }

    fn read(&self, key: LayerKey, blocks: BlockRange) -> StoreDone {
        let bad = self.bad_in(key, blocks.iter());
        if !bad.is_empty() {
            return StoreDone::BadBlocks(bad);
        }
        let layer = self.live.layers.get(&key);
        let content = |block| {
            let held = layer.and_then(|layer| layer.blocks.get(&block));
            held.cloned().unwrap_or_else(|| Bytes::from(vec![0; BLOCK_BYTES]))
        };
        let data: Vec<Bytes> = blocks.iter().map(content).collect();
        StoreDone::Blocks(BlocksData { checksums: data.iter().map(|block| crc32c(block)).collect(), data })
    }

    fn capture(&self, key: LayerKey) -> StoreDone {
        let bad = self.bad_in(key, 0..256);
        if !bad.is_empty() {
            return StoreDone::BadBlocks(bad);
        }
        StoreDone::Layer(self.live.layers.get(&key).map(|layer| {
            let mut presence = [0; 4];
            layer.blocks.keys().for_each(|block| presence[usize::from(block / 64)] |= 1 << (block % 64));
            LayerCopy {
                version: layer.version,
                presence,
                checksums: layer.blocks.values().map(|block| crc32c(block)).collect(),
                data: layer.blocks.values().cloned().collect(),
            }
        }))
    }

    /// Records that are on their way.
    pub fn undurable(&self) -> usize {
        self.journal.len() - self.durable
    }

    /// Makes the next `count` records durable; whose they are.
    pub fn write(&mut self, count: usize) -> Vec<Token> {
        let count = count.min(self.undurable());
        let done = self.journal.iter().skip(self.durable).take(count).map(|(token, _)| *token).collect();
        self.durable += count;
        done
    }

    /// Moves durable records home. `apply_through`: of the committed entries, content through here goes home as well.
    pub fn checkpoint(&mut self, apply_through: Option<Seq>) {
        for (_, record) in self.journal.drain(..self.durable) {
            self.home.take(&record);
        }
        self.durable = 0;
        if let Some(through) = apply_through {
            for (seq, entry) in &self.home.entries {
                if *seq <= through.min(self.committed) {
                    apply(&mut self.home.layers, entry);
                }
            }
        }
    }

    /// The process dies; of what was on its way, the first `kept` records survive.
    pub fn crash(&mut self, kept: usize) {
        let kept = (self.durable + kept).min(self.journal.len());
        for (_, record) in self.journal.drain(..).take(kept) {
            self.home.take(&record);
        }
        self.durable = 0;
        let base = self.home.state.as_ref().map_or(Seq(0), |(through, _)| *through);
        let last = self.home.entries.keys().next_back().copied().unwrap_or_default().max(base);
        // A mark of what was committed may have reached the disk, or not; what it covers is content from then on.
        let is_marked = (self.committed.0 + kept as u64).is_multiple_of(2);
        self.committed = if is_marked { self.committed.min(last).max(base) } else { base };
        for entry in self.home.entries.range(..=self.committed).map(|(_, entry)| entry.clone()).collect::<Vec<_>>() {
            apply(&mut self.home.layers, &entry);
        }
        self.live = self.home.clone();
        self.newly_committed.clear();
    }

    /// The disk lied: the last `count` entries are gone.
    pub fn lose_tail(&mut self, count: usize) {
        for _ in 0..count {
            self.home.entries.pop_last();
        }
        self.live = self.home.clone();
    }

    /// A metadata page is lost: of every layer a block is gone, and the journal has given it the newest version again.
    pub fn lose_page(&mut self) {
        let entries: Vec<Entry> = self.home.entries.values().cloned().collect();
        entries.iter().for_each(|entry| apply(&mut self.home.layers, entry));
        self.committed = entries.last().map_or(self.committed, |entry| entry.version.seq);
        self.home.layers.values_mut().for_each(|layer| drop(layer.blocks.pop_first()));
        self.live = self.home.clone();
    }

    /// What a new process finds.
    pub fn recovered(&self, verdict: Verdict) -> Option<Recovered> {
        let fresh = self.live.promised == Term(0) && self.live.state.is_none() && self.live.entries.is_empty();
        (!fresh).then(|| Recovered {
            promised: self.live.promised,
            state: self.live.state.clone(),
            committed: self.committed,
            entries: self.live.entries.values().cloned().collect(),
            verdict,
        })
    }

    pub fn layers(&self) -> &BTreeMap<LayerKey, Layer> {
        &self.live.layers
    }
}
