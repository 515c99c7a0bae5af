//! Ids: one counter for all kinds, so that no two objects ever share one, not even of different kinds.
//!
//! The counter's low half is printed first, as in ScaleIO's ids (`5a2c67b900000000`, then `5a2c67ba00000000`), and starts
//! at a number that the system's id gives: ids of two systems are seldom the same, which makes mix-ups visible.

use mdm_api::ids::{MdmId, SystemId};
use serde::{Deserialize, Serialize};

/// The id counter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mint {
    next: u64,
}

impl Mint {
    /// A counter for a new system.
    pub(crate) fn new(system: SystemId) -> Self {
        // 0x1000_0000 and up: eight digits for years to come, and never zero.
        Self { next: 0x1000_0000 + ((system.0 >> 32) & 0x3fff_ffff) }
    }

    /// A number that was never given before.
    pub(crate) fn take(&mut self) -> u64 {
        let counter = self.next;
        self.next += 1;
        counter.rotate_left(32)
    }
}

/// The id that the first member of a system's metadata manager has: it is needed before there is a state to mint it.
pub fn first_mdm_id(system: SystemId) -> MdmId {
    MdmId(Mint::new(system).take())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_look_like_scaleios_and_are_never_given_twice() {
        let mut mint = Mint::new(SystemId(0x4a1c_67b9_1234_5678));
        let ids: Vec<u64> = (0..1000).map(|_| mint.take()).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(format!("{:016x}", ids[0]), "1a1c67b900000000");
        mint.next = u64::from(u32::MAX);
        let (before, after) = (mint.take(), mint.take());
        assert_eq!((before, after), (0xffff_ffff_0000_0000, 1));
    }
}
