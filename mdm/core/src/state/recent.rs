//! Answers that were given lately, so that a repeated request takes effect once.
//!
//! Only successes are kept: a refused command has changed nothing, and may be judged anew when it is asked again.

use std::collections::BTreeMap;

use mdm_api::command::CommandAnswer;
use serde::{Deserialize, Serialize};

/// A window of answers by request id; the oldest go first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recent {
    next: u64,
    order: BTreeMap<u64, u128>,
    answers: BTreeMap<u128, CommandAnswer>,
}

impl Recent {
    pub(crate) fn get(&self, request_id: u128) -> Option<&CommandAnswer> {
        self.answers.get(&request_id)
    }

    /// Remembers an answer; of more than `max` the oldest are forgotten.
    pub(crate) fn put(&mut self, request_id: u128, answer: CommandAnswer, max: usize) {
        self.order.insert(self.next, request_id);
        self.next += 1;
        self.answers.insert(request_id, answer);
        while self.order.len() > max {
            if let Some((_, oldest)) = self.order.pop_first() {
                self.answers.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_answer_is_forgotten_first() {
        let mut recent = Recent::default();
        for id in 1..=5 {
            recent.put(id, CommandAnswer::Object { id: id as u64 }, 3);
        }
        assert_eq!(recent.get(2), None);
        assert_eq!(recent.get(3), Some(&CommandAnswer::Object { id: 3 }));
        assert_eq!(recent.order.len(), recent.answers.len());
    }
}
