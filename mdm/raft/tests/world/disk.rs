//! A disk in memory that keeps the promises of `mdm_raft::files`, and no others.

use std::collections::BTreeMap;

use bytes::Bytes;
use mdm_raft::FileOp;

use crate::world::Random;

#[derive(Clone, Default, Debug)]
struct File {
    durable: Vec<u8>,
    unsynced: Vec<u8>,
}

#[derive(Clone, Default, Debug)]
pub struct Disk {
    files: BTreeMap<String, File>,
}

impl Disk {
    pub fn perform(&mut self, op: &FileOp) {
        match op {
            FileOp::Append { file, bytes } => {
                self.files.get_mut(file).expect("appends go to files that exist").unsynced.extend_from_slice(bytes);
            }
            FileOp::Sync { file } => {
                let file = self.files.get_mut(file).expect("syncs go to files that exist");
                let bytes = std::mem::take(&mut file.unsynced);
                file.durable.extend(bytes);
            }
            FileOp::Replace { file, bytes } => {
                self.files.insert(file.clone(), File { durable: bytes.to_vec(), unsynced: Vec::new() });
            }
            FileOp::Remove { file } => {
                self.files.remove(file);
            }
        }
    }

    /// Power is gone: of what was appended and not synced, any subset is there, torn anywhere.
    pub fn power_cut(&mut self, random: &mut Random) {
        for file in self.files.values_mut() {
            let mut tail = std::mem::take(&mut file.unsynced);
            match random.below(4) {
                0 => tail.clear(),
                1 => tail.truncate(random.below(tail.len() as u64 + 1) as usize),
                2 => {
                    for piece in tail.chunks_mut(16) {
                        if random.below(3) == 0 {
                            piece.fill(0);
                        }
                    }
                }
                _ => {}
            }
            file.durable.extend(tail);
        }
    }

    /// The process is gone, the kernel is not.
    pub fn process_crash(&mut self) {
        // What was appended stays readable, and stays unsynced: nothing to do.
    }

    pub fn contents(&self) -> BTreeMap<String, Bytes> {
        self.files
            .iter()
            .map(|(name, file)| (name.clone(), Bytes::from([file.durable.clone(), file.unsynced.clone()].concat())))
            .collect()
    }
}
