//! Asking several members, one after the other in quick succession, until one answers: one that is gone keeps nobody
//! waiting for as long as a connection takes to fail.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;

/// How long one member may think before the next is asked beside it: far above a greeting, even on a busy host.
const STAGGER: Duration = Duration::from_millis(250);

/// The first answer, and which address it came from. Each address is asked once: the next as soon as the one before has
/// failed, or has been silent for 250 ms; what is still under way when one answers is dropped. The error is the last one;
/// `None`: there is no address.
pub(super) async fn first_answer<T, E, A>(
    addresses: &[String],
    ask: impl Fn(String) -> A,
) -> Option<Result<(usize, T), E>>
where
    T: Send + 'static,
    E: Send + 'static,
    A: Future<Output = Result<T, E>> + Send + 'static,
{
    let mut rest = addresses.iter().cloned().enumerate().peekable();
    let mut asked = JoinSet::new();
    let mut last = None;
    loop {
        if let Some((place, address)) = rest.next() {
            let answer = ask(address);
            asked.spawn(async move { (place, answer.await) });
        } else if asked.is_empty() {
            return last;
        }
        tokio::select! {
            Some(Ok((place, answer))) = asked.join_next() => match answer {
                Ok(answer) => return Some(Ok((place, answer))),
                Err(error) => last = Some(Err(error)),
            },
            () = tokio::time::sleep(STAGGER), if rest.peek().is_some() => {}
            else => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn addresses(all: &[&str]) -> Vec<String> {
        all.iter().map(|address| (*address).to_owned()).collect()
    }

    /// `gone` never answers, `closed` refuses, everybody else answers with its name.
    async fn ask(address: String) -> Result<String, &'static str> {
        match address.as_str() {
            "gone" => pending().await,
            "closed" => Err("refused"),
            _ => Ok(address),
        }
    }

    async fn search(all: &[&str]) -> Option<Result<(usize, String), &'static str>> {
        let all = addresses(all);
        let found = tokio::time::timeout(Duration::from_millis(2500), first_answer(&all, ask));
        found.await.expect("well before a connection to nobody is given up")
    }

    #[tokio::test]
    async fn members_that_are_gone_keep_nobody_waiting() {
        assert_eq!(search(&["gone", "gone", "there"]).await, Some(Ok((2, "there".to_owned()))));
        assert_eq!(search(&["there", "gone"]).await, Some(Ok((0, "there".to_owned()))));
    }

    #[tokio::test]
    async fn one_that_refuses_is_passed_over_and_all_refusing_is_an_error() {
        assert_eq!(search(&["closed", "there"]).await, Some(Ok((1, "there".to_owned()))));
        assert_eq!(search(&["gone", "closed", "there"]).await, Some(Ok((2, "there".to_owned()))));
        assert_eq!(search(&["closed", "closed"]).await, Some(Err("refused")));
        assert_eq!(search(&[]).await, None);
    }
}
