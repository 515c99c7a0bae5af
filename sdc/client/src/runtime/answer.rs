//! Where the user of an I/O waits for what comes of it: like a channel for one value, but used again for the next I/O, so
//! that an I/O of the steady state allocates nothing for it.
//!
//! Always true: a cell is used again only when nobody but the pool has it.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use crate::io::{IoError, IoOutput};

/// What came of an I/O.
type Outcome = Result<IoOutput, IoError>;

/// Cells that a pool keeps.
const KEPT_MAX: usize = 256;

#[derive(Debug, Default)]
struct State {
    outcome: Option<Outcome>,
    /// Nobody will answer any more.
    is_closed: bool,
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
struct Cell(Mutex<State>);

impl Cell {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A state is whole at every moment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cells that nobody uses.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Vec<Arc<Cell>>>);

/// Answers an I/O. Dropped without an answer, it says that none comes.
#[derive(Debug)]
pub(super) struct Answer {
    /// None once it has answered.
    cell: Option<Arc<Cell>>,
}

/// Waits for the answer.
#[derive(Debug)]
pub(super) struct Answered<'a> {
    pool: &'a Pool,
    cell: Arc<Cell>,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Cell>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Both ends.
    pub fn pair(&self) -> (Answer, Answered<'_>) {
        let cell = self.lock().pop().unwrap_or_default();
        (Answer { cell: Some(Arc::clone(&cell)) }, Answered { pool: self, cell })
    }

    fn keep(&self, mut cell: Arc<Cell>) {
        // Whoever answered may not have let go of it yet.
        let Some(own) = Arc::get_mut(&mut cell) else { return };
        *own.0.get_mut().unwrap_or_else(PoisonError::into_inner) = State::default();
        let mut kept = self.lock();
        if kept.len() < KEPT_MAX {
            kept.push(cell);
        }
    }
}

impl Answer {
    /// Answers. Who has gone away does not hear it.
    pub fn send(mut self, outcome: Outcome) {
        self.finish(|state| state.outcome = Some(outcome));
    }

    fn finish(&mut self, change: impl FnOnce(&mut State)) {
        let Some(cell) = self.cell.take() else { return };
        let waker = {
            let mut state = cell.lock();
            change(&mut state);
            state.waker.take()
        };
        // Before who waits is woken: so he finds the cell his own, and it can be used again.
        drop(cell);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.finish(|state| state.is_closed = true);
    }
}

impl Answered<'_> {
    /// The answer; [`IoError::Closed`] if none comes.
    pub async fn wait(self) -> Outcome {
        let outcome = poll_fn(|cx| {
            let mut state = self.cell.lock();
            match state.outcome.take() {
                Some(outcome) => Poll::Ready(outcome),
                None if state.is_closed => Poll::Ready(Err(IoError::Closed)),
                None => {
                    state.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
        self.pool.keep(self.cell);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_comes_whether_it_was_there_before_or_comes_later_and_a_cell_is_used_again() {
        let pool = Pool::default();
        let (answer, answered) = pool.pair();
        answer.send(Ok(IoOutput::Done));
        assert_eq!(answered.wait().await, Ok(IoOutput::Done));
        assert_eq!(pool.lock().len(), 1);
        let (answer, answered) = pool.pair();
        assert_eq!(pool.lock().len(), 0);
        let late = async {
            tokio::task::yield_now().await;
            answer.send(Err(IoError::TimedOut));
        };
        let (outcome, ()) = tokio::join!(answered.wait(), late);
        assert_eq!(outcome, Err(IoError::TimedOut));
        assert_eq!(pool.lock().len(), 1);
    }

    #[tokio::test]
    async fn who_waits_hears_that_nobody_answers_and_who_answers_needs_nobody() {
        let pool = Pool::default();
        let (answer, answered) = pool.pair();
        drop(answer);
        assert_eq!(answered.wait().await, Err(IoError::Closed));
        let (answer, answered) = pool.pair();
        drop(answered);
        answer.send(Ok(IoOutput::Done));
        let (answer, answered) = pool.pair();
        answer.send(Ok(IoOutput::Status(vec![true])));
        assert_eq!(answered.wait().await, Ok(IoOutput::Status(vec![true])), "nothing of the last one is left");
    }
}
