//! I/Os under way: what is still to be cut, what came back.

use bytes::Bytes;
use mdm_api::epoch::Nanos;
use smallvec::SmallVec;

use crate::io::{IoError, IoId, IoOutput, IoRequest};
use crate::limits::{BACKOFF_MS_MAX, BACKOFF_MS_MIN};
use crate::split::part_count;

/// What a piece brought.
#[derive(Debug, Default)]
pub(super) enum Outcome {
    #[default]
    Nothing,
    Data(Vec<Bytes>),
    Status(Vec<bool>),
}

#[derive(Debug)]
pub(super) struct Operation {
    pub request: IoRequest,
    /// First byte that is not cut into a piece yet.
    pub next: u64,
    /// One past the last byte.
    pub end: u64,
    /// Pieces cut so far.
    pub cut: usize,
    /// Pieces under way.
    pub live: u32,
    /// Earlier overlapping changes that are not answered.
    pub blockers: usize,
    /// What came back, by piece; only for reads and status. Most have one piece.
    outcomes: SmallVec<[Outcome; 1]>,
    /// The first error; the I/O fails with it once its other pieces are settled.
    pub error: Option<IoError>,
    /// Its user was answered, or waits no more: what is left is only to settle what was sent.
    pub abandoned: bool,
    /// When it is given up.
    pub deadline: Nanos,
}

impl Operation {
    pub fn new(request: IoRequest, deadline: Nanos) -> Self {
        let (offset, length) = request.range();
        let end = offset + length;
        let gathers = matches!(request, IoRequest::Read { .. } | IoRequest::Status { .. });
        let count = if gathers { part_count(offset, end) as usize } else { 0 };
        Self {
            request,
            next: offset,
            end,
            cut: 0,
            live: 0,
            blockers: 0,
            outcomes: std::iter::repeat_with(Outcome::default).take(count).collect(),
            error: None,
            abandoned: false,
            deadline,
        }
    }

    /// True if there is more to cut.
    pub fn has_more(&self) -> bool {
        self.next < self.end && self.error.is_none() && !self.abandoned
    }

    /// Takes in what a piece brought.
    pub fn settle(&mut self, index: usize, outcome: Result<Outcome, IoError>) {
        self.live -= 1;
        match outcome {
            Ok(outcome) => {
                if let Some(place) = self.outcomes.get_mut(index) {
                    *place = outcome;
                }
            }
            Err(error) => {
                self.error.get_or_insert(error);
            }
        }
    }

    /// The answer, once all pieces are settled.
    pub fn into_result(self) -> Result<IoOutput, IoError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let (mut data, mut status) = (Vec::new(), Vec::new());
        for outcome in self.outcomes {
            match outcome {
                Outcome::Nothing => {}
                Outcome::Data(pieces) if data.is_empty() => data = pieces,
                Outcome::Data(pieces) => data.extend(pieces),
                Outcome::Status(blocks) => status.extend(blocks),
            }
        }
        Ok(match self.request {
            IoRequest::Read { .. } => IoOutput::Data(data),
            IoRequest::Status { .. } => IoOutput::Status(status),
            IoRequest::Write { .. } | IoRequest::Zero { .. } | IoRequest::Flush => IoOutput::Done,
        })
    }
}

/// What becomes of a "no space".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum NoSpacePolicy {
    /// Wait until there is space: the guest's writes stall, nothing fails (F20).
    #[default]
    Hold,
    /// The write fails with [`IoError::NoSpace`].
    Fail,
}

/// What a session waits for, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Policy {
    /// On "no space".
    pub no_space: NoSpacePolicy,
    /// An I/O that is not answered after this many milliseconds fails with [`IoError::TimedOut`]. Default: never.
    pub give_up_ms: Option<u64>,
}

/// How long to wait before attempt `attempts` + 1.
pub(super) fn backoff_ms(attempts: u32) -> u64 {
    (BACKOFF_MS_MIN << attempts.min(16)).min(BACKOFF_MS_MAX)
}

/// For the table of operations.
pub(super) type Operations = std::collections::BTreeMap<IoId, Operation>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_limit_and_stay_there() {
        let waits: Vec<u64> = (0..8).map(backoff_ms).collect();
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 200, 200]);
        assert_eq!(backoff_ms(u32::MAX), BACKOFF_MS_MAX);
    }
}
