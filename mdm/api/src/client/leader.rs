//! Asking the leader, whoever that is at the moment.
//!
//! One task owns the connection and everything in flight on it. When the connection breaks or the member does not lead, the
//! task moves on and asks again: changing requests carry an id under which they take effect once, so asking twice is safe.

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::connection::{ConnectError, Connection, Connector, FramedWriter};
use super::follow::Members;
use super::search::first_answer;
use crate::control::{ControlMessage, MdmAddress, Request, RequestError, Response};
use crate::error::CommandError;
use crate::ids::MdmId;

/// Requests that wait in this process at the most; more wait in their callers.
const QUEUE: usize = 256;
/// Pause before another member is tried when none leads.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// A member that has not answered for so long is left, if another one is said to lead: it may be cut off, and no connection
/// says so for seconds. If nobody has said so, the others are asked; again after twice as long each time, for a leader may
/// have its reasons.
const UNANSWERED: Duration = Duration::from_millis(300);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Why a request has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// The system said no.
    #[error(transparent)]
    Refused(#[from] CommandError),
    /// Nobody answered in time; the text is the last reason.
    #[error("no metadata manager answered in time ({0}): check the addresses and that a majority of the MDMs runs")]
    Unavailable(String),
}

struct Job {
    request: Request,
    deadline: Instant,
    answer: oneshot::Sender<Result<Response, ClientError>>,
}

/// A handle to the asking task; cheap to clone. The task ends when all handles are gone.
#[derive(Clone)]
pub struct MdmClient {
    jobs: mpsc::Sender<Job>,
}

impl MdmClient {
    /// Starts the task. `token`: the session token that a tool's connections resume with.
    pub fn start(connector: Connector, members: Members, token: Option<String>) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE);
        tokio::spawn(
            Asker { connector, members, token, queue, last_error: String::from("not tried"), hint: None }.run(),
        );
        Self { jobs }
    }

    /// Asks, and waits for the answer for at most `patience`.
    pub async fn request(&self, request: Request, patience: Duration) -> Result<Response, ClientError> {
        let (answer, answered) = oneshot::channel();
        let gone = || ClientError::Unavailable("the client has stopped".to_owned());
        let job = Job { request, deadline: Instant::now() + patience, answer };
        self.jobs.send(job).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

struct Asker {
    connector: Connector,
    members: Members,
    token: Option<String>,
    queue: mpsc::Receiver<Job>,
    last_error: String,
    hint: Option<MdmAddress>,
}

/// What a member says when it is called.
enum Called {
    Greeted(Box<Connection>),
    Refused(CommandError),
}

type Looking = Pin<Box<dyn Future<Output = Option<MdmAddress>> + Send>>;

enum Ended {
    /// The connection is of no use any more.
    Moved,
    /// All handles are gone.
    Finished,
}

impl Asker {
    async fn run(mut self) {
        let mut waiting: Vec<Job> = Vec::new();
        let mut turn = 0;
        loop {
            if waiting.is_empty() {
                match self.queue.recv().await {
                    Some(job) => waiting.push(job),
                    None => return,
                }
            }
            let hinted = self.hint.take().map(|hint| hint.address);
            let candidates = self.candidates(hinted.clone(), turn);
            match call(&self.connector, &candidates).await {
                None => self.last_error = "no address of a metadata manager is known".to_owned(),
                Some(Err(error)) => self.last_error = error.to_string(),
                Some(Ok((0, Called::Refused(error)))) if hinted.is_some() => self.last_error = error.to_string(),
                Some(Ok((_, Called::Refused(error)))) => {
                    // A clear no of one member is everybody's: the same system, role and certificate.
                    for job in waiting.drain(..) {
                        let _ = job.answer.send(Err(ClientError::Refused(error.clone())));
                    }
                    continue;
                }
                Some(Ok((place, Called::Greeted(connection)))) => {
                    let is_hinted = place == 0 && hinted.is_some();
                    let leader = connection.leader.clone().filter(|leader| leader.id != connection.mdm && !is_hinted);
                    match leader {
                        // The others have yet to find out.
                        Some(leader) if hinted.as_ref() == Some(&leader.address) => {
                            self.last_error = "the member that is said to lead does not answer".to_owned();
                        }
                        Some(leader) => {
                            self.hint = Some(leader);
                            continue;
                        }
                        None => {
                            tracing::debug!(mdm = %connection.mdm, jobs = waiting.len(), "asking");
                            let address = candidates.get(place).map(String::as_str).unwrap_or_default();
                            if let Ended::Finished = self.serve(*connection, address, &mut waiting).await {
                                return;
                            }
                        }
                    }
                }
            }
            if self.hint.is_none() {
                turn += 1;
                self.pause(&mut waiting).await;
            }
        }
    }

    /// Whom to call: who is said to lead, then everybody else in turn.
    fn candidates(&self, hinted: Option<String>, turn: usize) -> Vec<String> {
        let mut all = self.members.addresses();
        let first = turn % all.len().max(1);
        all.rotate_left(first);
        if let Some(hinted) = hinted {
            all.retain(|address| *address != hinted);
            all.insert(0, hinted);
        }
        all
    }

    /// Waits a little and gives up what is past its deadline.
    async fn pause(&mut self, waiting: &mut Vec<Job>) {
        sleep_until(Instant::now() + RETRY_PAUSE).await;
        while waiting.len() < QUEUE
            && let Ok(job) = self.queue.try_recv()
        {
            waiting.push(job);
        }
        let now = Instant::now();
        let (late, rest) = std::mem::take(waiting).into_iter().partition(|job| job.deadline <= now);
        *waiting = rest;
        let late: Vec<Job> = late;
        for job in late {
            let _ = job.answer.send(Err(ClientError::Unavailable(self.last_error.clone())));
        }
    }

    async fn serve(&mut self, connection: Connection, address: &str, waiting: &mut Vec<Job>) -> Ended {
        let Connection { mut reader, mut writer, mdm, .. } = connection;
        let (arrivals, mut arrived) = mpsc::channel(QUEUE);
        let reading = tokio::spawn(async move {
            loop {
                let message = reader.next().await;
                let last = !matches!(message, Ok(Some(_)));
                if arrivals.send(message).await.is_err() || last {
                    return;
                }
            }
        });
        let mut flying = BTreeMap::new();
        let ended = self.exchange((mdm, address), &mut writer, &mut arrived, waiting, &mut flying).await;
        reading.abort();
        waiting.extend(flying.into_values());
        ended
    }

    async fn exchange<W: tokio::io::AsyncWrite + Unpin>(
        &mut self,
        (mdm, address): (MdmId, &str),
        writer: &mut FramedWriter<W>,
        arrived: &mut mpsc::Receiver<std::io::Result<Option<ControlMessage>>>,
        waiting: &mut Vec<Job>,
        flying: &mut BTreeMap<u64, Job>,
    ) -> Ended {
        let mut next_id = 1;
        // When something was last sent while nothing was under way, or heard.
        let mut lively = Instant::now();
        let (mut looking, mut look_after): (Option<Looking>, _) = (None, UNANSWERED);
        let changes = self.members.leader_changes();
        // Goes on by itself: requests that come one after the other must not put the look off.
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if let Some(token) = self.token.clone() {
            let resume = ControlMessage::Request { id: 0, request: Box::new(Request::Resume { token }) };
            if self.sent(writer, &resume).await.is_err() {
                return Ended::Moved;
            }
        }
        loop {
            if flying.is_empty() {
                (lively, looking, look_after) = (Instant::now(), None, UNANSWERED);
            }
            for job in std::mem::take(waiting) {
                let message = ControlMessage::Request { id: next_id, request: Box::new(job.request.clone()) };
                flying.insert(next_id, job);
                next_id += 1;
                if self.sent(writer, &message).await.is_err() {
                    self.turn_to(mdm, self.members.leader());
                    return Ended::Moved;
                }
            }
            let soonest = flying.values().map(|job| job.deadline).min();
            let wake = soonest.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                job = self.queue.recv(), if flying.len() < QUEUE => match job {
                    Some(job) => {
                        waiting.push(job);
                        // Heard while nothing was asked here: this member need not be found silent first.
                        let is_new = flying.is_empty() && self.members.leader_changes() != changes;
                        if is_new && self.turn_to(mdm, self.members.leader()) {
                            return Ended::Moved;
                        }
                    }
                    None if flying.is_empty() => return Ended::Finished,
                    None => {}
                },
                message = arrived.recv() => {
                    (lively, looking, look_after) = (Instant::now(), None, UNANSWERED);
                    if self.take(message, flying, waiting).is_err() {
                        return Ended::Moved;
                    }
                }
                _ = looks.tick(), if !flying.is_empty() => {
                    if lively.elapsed() >= UNANSWERED && self.turn_to(mdm, self.members.leader()) {
                        return Ended::Moved;
                    }
                    if looking.is_none() && lively.elapsed() >= look_after {
                        looking = Some(self.look(address));
                    }
                }
                leader = found(&mut looking) => {
                    (looking, look_after) = (None, 2 * lively.elapsed());
                    if self.turn_to(mdm, leader) {
                        return Ended::Moved;
                    }
                }
                () = sleep_until(wake), if soonest.is_some() => self.expire(flying),
            }
        }
    }

    /// Goes to that member next, if it is another one than `mdm`.
    fn turn_to(&mut self, mdm: MdmId, leader: Option<MdmAddress>) -> bool {
        let Some(leader) = leader.filter(|leader| leader.id != mdm) else { return false };
        self.last_error = "a member that led does not answer".to_owned();
        self.hint = Some(leader);
        true
    }

    /// Asks the members that are not at `address` who leads.
    fn look(&self, address: &str) -> Looking {
        let mut others = self.members.addresses();
        others.retain(|other| other != address);
        let connector = self.connector.clone();
        Box::pin(async move {
            match call(&connector, &others).await {
                Some(Ok((_, Called::Greeted(connection)))) => connection.leader,
                _ => None,
            }
        })
    }

    /// `Err`: the connection is of no use. A member that is cut off takes some requests, as many as fit the kernel's buffer,
    /// and then none: whoever waited for it would look after nothing else.
    async fn sent<W: tokio::io::AsyncWrite + Unpin>(
        &mut self,
        writer: &mut FramedWriter<W>,
        message: &ControlMessage,
    ) -> Result<(), ()> {
        let sent = tokio::time::timeout(UNANSWERED, writer.send(message)).await;
        let sent = sent.unwrap_or_else(|late| Err(late.into()));
        sent.map_err(|error| self.last_error = format!("a request was not sent: {error}"))
    }

    /// One arrival. `Err`: move on to another member.
    fn take(
        &mut self,
        message: Option<std::io::Result<Option<ControlMessage>>>,
        flying: &mut BTreeMap<u64, Job>,
        waiting: &mut Vec<Job>,
    ) -> Result<(), ()> {
        match message {
            Some(Ok(Some(ControlMessage::Response { id: 0, result: Err(RequestError::Refused(error)) }))) => {
                // The session is not valid any more: everything that relied on it is refused.
                for (_, job) in std::mem::take(flying) {
                    let _ = job.answer.send(Err(ClientError::Refused(error.clone())));
                }
                self.last_error = error.to_string();
                Err(())
            }
            Some(Ok(Some(ControlMessage::Response { id, result }))) => {
                let Some(job) = flying.remove(&id) else { return Ok(()) };
                match result {
                    Ok(response) => drop(job.answer.send(Ok(*response))),
                    Err(RequestError::Refused(error)) => drop(job.answer.send(Err(ClientError::Refused(error)))),
                    Err(RequestError::NotLeader(leader)) => {
                        self.last_error = "no leader is known yet".to_owned();
                        self.hint = leader;
                        waiting.push(job);
                        return Err(());
                    }
                }
                Ok(())
            }
            Some(Ok(Some(_))) => Ok(()),
            Some(Ok(None)) | None => {
                self.last_error = "the connection was closed".to_owned();
                Err(())
            }
            Some(Err(error)) => {
                self.last_error = error.to_string();
                Err(())
            }
        }
    }

    fn expire(&mut self, flying: &mut BTreeMap<u64, Job>) {
        let now = Instant::now();
        let late: Vec<u64> = flying.iter().filter(|(_, job)| job.deadline <= now).map(|(id, _)| *id).collect();
        for id in late {
            if let Some(job) = flying.remove(&id) {
                let text = "connected, but the request was not answered".to_owned();
                let _ = job.answer.send(Err(ClientError::Unavailable(text)));
            }
        }
    }
}

/// Calls members until one answers; no is an answer too.
async fn call(connector: &Connector, addresses: &[String]) -> Option<Result<(usize, Called), ConnectError>> {
    let calling = first_answer(addresses, |address| {
        let connector = connector.clone();
        async move {
            match connector.connect(&address).await {
                Ok(connection) => Ok(Called::Greeted(Box::new(connection))),
                Err(ConnectError::Refused { error, .. }) => Ok(Called::Refused(error)),
                Err(error) => Err(error),
            }
        }
    });
    calling.await
}

/// What a search that is under way finds; for ever, if none is.
async fn found(looking: &mut Option<Looking>) -> Option<MdmAddress> {
    match looking {
        Some(looking) => looking.await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    use super::*;
    use crate::command::Query;
    use crate::control::PeerRole;

    /// One that has nobody to call, and what hands it its jobs.
    fn asker(members: Members) -> (Asker, mpsc::Sender<Job>) {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let tls = tls.unwrap().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let connector = Connector::new(Arc::new(tls), PeerRole::Tool, None);
        (Asker { connector, members, token: None, queue, last_error: String::new(), hint: None }, jobs)
    }

    fn job() -> Job {
        let deadline = Instant::now() + Duration::from_secs(3);
        Job { request: Request::Query(Query::System), deadline, answer: oneshot::channel().0 }
    }

    /// What is asked of a member that never answers, which takes what `writer` takes; what hint the exchange left, if it
    /// ended, and how many requests are to be asked again.
    async fn ask_the_silent<W: tokio::io::AsyncWrite + Unpin>(
        members: Members,
        writer: W,
        mut waiting: Vec<Job>,
    ) -> (Option<Option<MdmAddress>>, usize) {
        let (mut asker, _jobs) = asker(members);
        let (_arrivals, mut arrived) = mpsc::channel(1);
        let (mut flying, mut writer) = (BTreeMap::new(), FramedWriter::new(writer));
        let exchange = asker.exchange(SILENT, &mut writer, &mut arrived, &mut waiting, &mut flying);
        let moved = tokio::time::timeout(Duration::from_secs(1), exchange).await;
        (moved.is_ok().then_some(asker.hint), flying.len())
    }

    const SILENT: (MdmId, &str) = (MdmId(1), "127.0.0.1:1");

    fn two_members() -> (Members, [MdmAddress; 2]) {
        let members = Members::default();
        let addresses = [1, 2].map(|id| MdmAddress { id: MdmId(id), address: format!("127.0.0.1:{id}") });
        members.replace(&addresses);
        (members, addresses)
    }

    #[tokio::test]
    async fn a_silent_member_is_left_for_whoever_is_said_to_lead_and_not_without_one() {
        let (members, addresses) = two_members();
        let ask = || ask_the_silent(members.clone(), tokio::io::sink(), vec![job()]);
        assert_eq!(ask().await, (None, 1), "nobody is said to lead");
        members.led_by(MdmId(1));
        assert_eq!(ask().await, (None, 1), "the silent one leads: it has its reasons");
        members.led_by(MdmId(2));
        assert_eq!(ask().await, (Some(Some(addresses[1].clone())), 1));
    }

    // F2: as many requests as fit the kernel's buffers went to a leader that was gone; the rest waited to be written.
    #[tokio::test]
    async fn a_member_that_takes_no_requests_is_left_whoever_leads() {
        let (members, _) = two_members();
        let (ours, _theirs) = tokio::io::duplex(100);
        let waiting = (0..8).map(|_| job()).collect();
        let (hint, _) = ask_the_silent(members, ours, waiting).await;
        assert_eq!(hint, Some(None), "it is left, and nobody is said to lead");
    }

    #[tokio::test]
    async fn a_member_that_was_deposed_while_nothing_was_asked_is_asked_nothing() {
        let (members, addresses) = two_members();
        members.led_by(MdmId(2)); // Old news, when the connection is made.
        let (mut asker, jobs) = asker(members.clone());
        let (_arrivals, mut arrived) = mpsc::channel(1);
        let (mut waiting, mut flying) = (Vec::new(), BTreeMap::new());
        let mut writer = FramedWriter::new(Vec::new());
        let exchange = asker.exchange(SILENT, &mut writer, &mut arrived, &mut waiting, &mut flying);
        let news = async {
            tokio::task::yield_now().await;
            members.led_by(MdmId(1));
            members.led_by(MdmId(2));
            jobs.send(job()).await.map_err(drop).unwrap();
        };
        let (ended, ()) = tokio::join!(exchange, news);
        assert!(matches!(ended, Ended::Moved));
        assert_eq!((waiting.len(), flying.len()), (1, 0), "the request was not sent");
        assert_eq!(asker.hint, Some(addresses[1].clone()));
    }
}
