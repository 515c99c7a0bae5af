//! One system at a time on this machine: two would measure each other.

use std::fs::File;

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};

/// The right to run a system; given back when it is dropped, or when the process ends.
pub struct Turn {
    _file: File,
}

impl Turn {
    /// Waits until nobody else of this machine has it. Locks of one process exclude each other too, because each opens
    /// the file anew.
    pub fn take() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join("ashlar-cluster.lock");
        let file = File::options().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        flock(&file, FlockOperation::LockExclusive).with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Self { _file: file })
    }
}
