//! The disk under a metadata manager's log: files that are appended to, replaced and synced, and what a crash leaves.

use std::collections::BTreeMap;

use bytes::Bytes;
use mdm_raft::{FileName, FileOp, PersistId};

use crate::rng::Rng;

#[derive(Clone, Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    durable: usize,
}

/// The files of one member.
#[derive(Debug, Default)]
pub struct Files {
    files: BTreeMap<FileName, Content>,
    running: Option<(PersistId, Vec<FileOp>)>,
    /// Appended bytes that a power cut took.
    pub lost_bytes: u64,
}

impl Files {
    /// Begins a batch; at most one is under way.
    pub fn begin(&mut self, id: PersistId, ops: Vec<FileOp>) {
        assert!(self.running.is_none(), "at most one batch of file operations is under way");
        self.running = Some((id, ops));
    }

    /// The batch is done.
    pub fn finish(&mut self) -> Option<PersistId> {
        let (id, ops) = self.running.take()?;
        ops.into_iter().for_each(|op| self.execute(op));
        Some(id)
    }

    /// The process ends in the middle of whatever is under way: some of its operations were done.
    pub fn process_ended(&mut self, rng: &mut Rng) {
        let Some((_, ops)) = self.running.take() else { return };
        let done = rng.below(ops.len() as u64 + 1) as usize;
        ops.into_iter().take(done).for_each(|op| self.execute(op));
    }

    /// The power goes: of what was appended and not synced any part may be there, torn at 512 bytes.
    pub fn power_lost(&mut self, rng: &mut Rng) {
        self.process_ended(rng);
        for content in self.files.values_mut() {
            let loose = content.bytes.len() - content.durable;
            if loose == 0 {
                continue;
            }
            let keep = content.durable + rng.below(loose as u64 + 1) as usize;
            self.lost_bytes += (content.bytes.len() - keep) as u64;
            content.bytes.truncate(keep);
            for sector in content.bytes[content.durable..].chunks_mut(512) {
                if rng.one_in(4) {
                    sector.fill(0);
                }
            }
            content.durable = content.bytes.len();
        }
    }

    /// All there is, as a starting process reads it.
    pub fn read(&self) -> BTreeMap<FileName, Bytes> {
        self.files.iter().map(|(name, content)| (name.clone(), Bytes::copy_from_slice(&content.bytes))).collect()
    }

    fn execute(&mut self, op: FileOp) {
        match op {
            FileOp::Append { file, bytes } => {
                let content = self.files.get_mut(&file).expect("only files that exist are appended to");
                content.bytes.extend_from_slice(&bytes);
            }
            FileOp::Sync { file } => {
                if let Some(content) = self.files.get_mut(&file) {
                    content.durable = content.bytes.len();
                }
            }
            FileOp::Replace { file, bytes } => {
                self.files.insert(file, Content { durable: bytes.len(), bytes: bytes.to_vec() });
            }
            FileOp::Remove { file } => drop(self.files.remove(&file)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_synced_survives_a_power_cut_and_what_was_not_may_go() {
        let (name, mut lost) = ("log-1".to_owned(), 0);
        for seed in 0..50 {
            let mut files = Files::default();
            let append = |bytes: &'static [u8]| FileOp::Append { file: name.clone(), bytes: Bytes::from_static(bytes) };
            let replace = FileOp::Replace { file: name.clone(), bytes: Bytes::from_static(b"head") };
            files.begin(
                PersistId(1),
                vec![replace, append(b"safe"), FileOp::Sync { file: name.clone() }, append(b"loose")],
            );
            assert_eq!(files.finish(), Some(PersistId(1)));
            files.power_lost(&mut Rng::new(seed));
            let left = files.read()[&name].clone();
            assert!(left.starts_with(b"headsafe"));
            lost += usize::from(left.len() < 13);
        }
        assert!(lost > 20);
    }
}
