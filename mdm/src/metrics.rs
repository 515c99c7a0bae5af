//! Figures for Prometheus, and the small server that shows them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use mdm_node::Figures;
use prometheus::{Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Scrapes at a time.
const SCRAPES_MAX: usize = 16;

/// All figures; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    gauges: Arc<Vec<(IntGauge, fn(&Figures) -> u64)>>,
    commands: IntCounterVec,
    leader_changes: IntCounter,
    persist_seconds: Histogram,
}

/// Name, help and source of each gauge.
const GAUGES: [(&str, &str, fn(&Figures) -> u64); 16] = [
    ("leader", "1 if this member leads", |f| u64::from(f.leads)),
    ("raft_term", "Raft's term", |f| f.term),
    ("raft_committed_index", "Last committed entry that this member knows of", |f| f.committed),
    ("raft_applied_index", "Last entry that this member has applied", |f| f.applied),
    ("raft_dropped_messages", "Messages of other members that were not understood or not wanted", |f| {
        f.dropped_messages
    }),
    ("map_revision", "Revision of the cluster map", |f| f.revision),
    ("members", "Members of the metadata manager", |f| f.members as u64),
    ("pgs_healthy", "Placement groups with all copies in sync", |f| f.healthy_pgs as u64),
    ("pgs_degraded", "Placement groups that serve with fewer copies", |f| f.degraded_pgs as u64),
    ("pgs_dark", "Placement groups that nobody serves", |f| f.dark_pgs as u64),
    ("sds_connected", "Data servers that are taken to be alive", |f| f.connected_sds as u64),
    ("volumes", "Volumes", |f| f.volumes as u64),
    ("mappings", "Mappings", |f| f.mappings as u64),
    ("connections", "Control connections of this member", |f| f.connections as u64),
    ("followers", "Followers of the map at this member", |f| f.followers as u64),
    ("requests_waiting", "Requests that are undecided or wait for more than a commit", |f| {
        (f.proposals + f.deferred) as u64
    }),
];

impl Metrics {
    /// All at zero.
    pub fn new() -> anyhow::Result<Self> {
        let registry = Registry::new_custom(Some("ashlar_mdm".to_owned()), None).context("metrics")?;
        let mut gauges = Vec::new();
        for (name, help, source) in GAUGES {
            let gauge = IntGauge::new(name, help).context("metrics")?;
            registry.register(Box::new(gauge.clone())).context("metrics")?;
            gauges.push((gauge, source));
        }
        let commands = IntCounterVec::new(Opts::new("commands_total", "Commands applied"), &["kind", "result"])?;
        let leader_changes = IntCounter::new("leader_changes_total", "Changes of the leader seen by this member")?;
        let buckets = prometheus::exponential_buckets(0.000_1, 2.0, 16)?;
        let options =
            HistogramOpts::new("log_persist_seconds", "Time to make a batch of the log durable").buckets(buckets);
        let persist_seconds = Histogram::with_opts(options)?;
        registry.register(Box::new(commands.clone()))?;
        registry.register(Box::new(leader_changes.clone()))?;
        registry.register(Box::new(persist_seconds.clone()))?;
        Ok(Self { registry, gauges: Arc::new(gauges), commands, leader_changes, persist_seconds })
    }

    /// Takes the member's figures.
    pub(crate) fn set(&self, figures: &Figures) {
        for (gauge, source) in self.gauges.iter() {
            gauge.set(i64::try_from(source(figures)).unwrap_or(i64::MAX));
        }
    }

    /// A command was applied.
    pub(crate) fn applied(&self, kind: &str, refused: bool) {
        self.commands.with_label_values(&[kind, if refused { "refused" } else { "done" }]).inc();
    }

    /// The leader changed.
    pub(crate) fn leader_changed(&self) {
        self.leader_changes.inc();
    }

    /// A batch of the log became durable.
    pub(crate) fn persisted(&self, took: Duration) {
        self.persist_seconds.observe(took.as_secs_f64());
    }

    fn text(&self) -> anyhow::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, body) = match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics") => match self.text() {
                Ok(text) => (StatusCode::OK, text),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n").into_bytes()),
            },
            (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, b"only GET\n".to_vec()),
            _ => (StatusCode::NOT_FOUND, b"see /metrics\n".to_vec()),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response
    }

    /// Serves them until the process ends.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(SCRAPES_MAX));
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a scrape could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let metrics = self.clone();
            tokio::spawn(async move {
                let _permit = permit;
                let service = service_fn(move |request| {
                    let response = metrics.answer(&request);
                    async move { Ok::<_, Infallible>(response) }
                });
                let mut server = http1::Builder::new();
                server.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(5)).keep_alive(false);
                if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                    tracing::debug!(%error, "scrape failed");
                }
            });
        }
    }
}
