//! A bounded queue to one peer that drops its oldest messages: Raft repeats what is lost, and what is old is worth least.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

#[derive(Default)]
struct Queue {
    messages: VecDeque<Bytes>,
    bytes: usize,
    is_closed: bool,
}

/// The queue; both ends hold it.
#[derive(Clone)]
pub(crate) struct Mailbox {
    queue: Arc<Mutex<Queue>>,
    filled: Arc<Notify>,
    messages_max: usize,
    bytes_max: usize,
}

impl Mailbox {
    pub(crate) fn new(messages_max: usize, bytes_max: usize) -> Self {
        Self { queue: Arc::default(), filled: Arc::default(), messages_max, bytes_max }
    }

    /// Puts a message in; gives how many older ones were dropped for it. At least the newest one is always kept.
    pub(crate) fn put(&self, message: Bytes) -> usize {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.bytes += message.len();
        queue.messages.push_back(message);
        let mut dropped = 0;
        while queue.messages.len() > 1
            && (queue.messages.len() > self.messages_max || queue.bytes > self.bytes_max)
            && let Some(oldest) = queue.messages.pop_front()
        {
            queue.bytes -= oldest.len();
            dropped += 1;
        }
        drop(queue);
        self.filled.notify_one();
        dropped
    }

    /// Forgets what waits: the peer cannot be reached, and what it needs will be said anew.
    pub(crate) fn clear(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.messages.clear();
        queue.bytes = 0;
    }

    /// No more will come.
    pub(crate) fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).is_closed = true;
        self.filled.notify_one();
    }

    /// True once closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).is_closed
    }

    fn take(&self) -> Result<Option<Bytes>, ()> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        match queue.messages.pop_front() {
            Some(message) => {
                queue.bytes -= message.len();
                Ok(Some(message))
            }
            None if queue.is_closed => Err(()),
            None => Ok(None),
        }
    }

    /// Waits for the next message; `None` once closed and empty.
    pub(crate) async fn next(&self) -> Option<Bytes> {
        loop {
            let filled = self.filled.notified();
            match self.take() {
                Ok(Some(message)) => return Some(message),
                Err(()) => return None,
                Ok(None) => filled.await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_mailbox_drops_the_oldest_and_keeps_the_newest() {
        let mailbox = Mailbox::new(2, 100);
        assert_eq!(mailbox.put(Bytes::from_static(b"1")), 0);
        assert_eq!(mailbox.put(Bytes::from_static(b"2")), 0);
        assert_eq!(mailbox.put(Bytes::from_static(b"3")), 1);
        assert_eq!(mailbox.put(Bytes::from(vec![4; 200])), 2);
        assert_eq!(mailbox.next().await.unwrap().len(), 200);
        mailbox.close();
        assert_eq!(mailbox.next().await, None);
    }
}
