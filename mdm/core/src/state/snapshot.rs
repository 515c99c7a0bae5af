//! The state as bytes: for snapshots, and for comparing members.

use super::State;

/// Version of the encoding, its first byte.
const SNAPSHOT_VERSION: u8 = 1;

/// The bytes are not a state.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Nothing there.
    #[error("the snapshot of the metadata manager's state is empty")]
    Empty,
    /// Written by a newer version.
    #[error("the snapshot has version {0}, this software knows {SNAPSHOT_VERSION}: install the newer version")]
    Version(u8),
    /// Damaged.
    #[error("the snapshot of the metadata manager's state is damaged")]
    Damaged(#[from] rmp_serde::decode::Error),
}

impl State {
    /// The state as bytes. Equal states give equal bytes: everything in it is ordered.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![SNAPSHOT_VERSION];
        rmp_serde::encode::write_named(&mut bytes, self).expect("every part of the state can be written to memory");
        bytes
    }

    /// The state from [`State::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SnapshotError> {
        match bytes.split_first() {
            None => Err(SnapshotError::Empty),
            Some((&SNAPSHOT_VERSION, rest)) => Ok(rmp_serde::from_slice(rest)?),
            Some((&version, _)) => Err(SnapshotError::Version(version)),
        }
    }

    /// A digest of the whole state: equal on every member that has applied the same log.
    pub fn digest(&self) -> [u8; 32] {
        *blake3::hash(&self.to_bytes()).as_bytes()
    }
}
