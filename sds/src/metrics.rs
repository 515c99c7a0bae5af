//! Figures for Prometheus, and the small server that shows them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};
use sds_node::{Figures, OperationKind, latency_bounds_ns};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

/// Scrapes at a time.
const SCRAPES_MAX: usize = 16;

type Labels<'a> = &'a [(&'a str, &'a str)];

fn labelled(labels: Labels<'_>) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    Metric::from_label(labels.iter().map(pair).collect())
}

#[derive(Default)]
struct Families(Vec<MetricFamily>);

impl Families {
    fn add(&mut self, name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) {
        let mut family = MetricFamily::default();
        family.set_name(format!("ashlar_sds_{name}"));
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.0.push(family);
    }

    fn gauges(&mut self, name: &str, help: &str, values: &[(Labels<'_>, f64)]) {
        let metric = |(labels, value): &(Labels<'_>, f64)| {
            let mut metric = labelled(labels);
            let mut gauge = Gauge::default();
            gauge.set_value(*value);
            metric.set_gauge(gauge);
            metric
        };
        self.add(name, help, MetricType::GAUGE, values.iter().map(metric).collect());
    }

    fn counters(&mut self, name: &str, help: &str, values: &[(Labels<'_>, u64)]) {
        let metric = |(labels, value): &(Labels<'_>, u64)| {
            let mut metric = labelled(labels);
            let mut counter = Counter::default();
            counter.set_value(*value as f64);
            metric.set_counter(counter);
            metric
        };
        self.add(name, help, MetricType::COUNTER, values.iter().map(metric).collect());
    }
}

const ROLES: [&str; 6] = ["idle", "learner", "secondary", "activating", "primary", "failed"];

fn families(f: &Figures) -> Vec<MetricFamily> {
    let mut all = Families::default();
    operations(f, &mut all);
    let results: [(Labels<'_>, u64); 3] = [
        (&[("why", "retry")], f.retries),
        (&[("why", "wrong_primary")], f.wrong_primary),
        (&[("why", "error")], f.errors),
    ];
    all.counters("requests_refused_total", "Requests not carried out", &results);
    all.gauges(
        "in_service",
        "1 once the server is registered and follows the map",
        &[(&[], f64::from(u8::from(f.in_service)))],
    );
    all.gauges("map_revision", "Revision of the cluster map", &[(&[], f.map_revision as f64)]);
    all.gauges("requests", "Client requests under way", &[(&[], f.requests as f64)]);
    all.gauges("clients", "Clients with open volumes", &[(&[], f.clients as f64)]);
    all.gauges("volumes_open", "Volumes open on connections", &[(&[], f.handles as f64)]);
    all.gauges("peers", "Connected data servers", &[(&[], f.peers as f64)]);
    all.counters("peer_messages_total", "Messages to replicas on other servers", &[(&[], f.peer_messages)]);
    let labels: Vec<[(&str, &str); 1]> = ROLES.iter().map(|role| [("role", *role)]).collect();
    let roles: Vec<(Labels<'_>, f64)> =
        labels.iter().zip(f.roles).map(|(l, count)| (l.as_slice(), count as f64)).collect();
    all.gauges("replicas", "Replicas of placement groups by role", &roles);
    all.gauges(
        "resync_layers_left",
        "Chunk layers still to be copied to learners",
        &[(&[], f.resync_layers_left as f64)],
    );
    all.gauges("resync_bytes", "Bytes copied to the learners of the moment", &[(&[], f.resync_bytes as f64)]);
    all.counters("resync_bytes_total", "Bytes copied to learners", &[(&[], f.resync_bytes_total)]);
    all.counters("bad_blocks_total", "Blocks found bad on a device", &[(&[], f.bad_blocks)]);
    all.counters("repaired_blocks_total", "Bad blocks repaired from a peer", &[(&[], f.repaired_blocks)]);
    all.counters("device_failures_total", "Devices that failed", &[(&[], f.device_failures)]);
    devices(f, &mut all);
    all.0
}

fn operations(f: &Figures, all: &mut Families) {
    let mut bytes = Vec::new();
    let mut times = Vec::new();
    for (kind, figures) in OperationKind::ALL.iter().zip(&f.operations) {
        let labels = [("op", kind.name())];
        let mut counter = Counter::default();
        counter.set_value(figures.bytes as f64);
        let mut metric = labelled(&labels);
        metric.set_counter(counter);
        bytes.push(metric);
        let mut histogram = Histogram::default();
        histogram.set_sample_count(figures.count);
        histogram.set_sample_sum(figures.total_ns as f64 / 1e9);
        let mut below = 0;
        let bucket = |(bound, count): (&u64, &u64)| {
            below += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound as f64 / 1e9);
            bucket.set_cumulative_count(below);
            bucket
        };
        histogram.set_bucket(latency_bounds_ns().iter().zip(&figures.buckets).map(bucket).collect());
        let mut metric = labelled(&labels);
        metric.set_histogram(histogram);
        times.push(metric);
    }
    all.add("operation_bytes_total", "Bytes of client requests served", MetricType::COUNTER, bytes);
    all.add("operation_seconds", "Time from request to answer", MetricType::HISTOGRAM, times);
}

fn devices(f: &Figures, all: &mut Families) {
    let ids: Vec<(String, &sds_node::DeviceFigures)> = f.devices.iter().map(|d| (d.device.to_string(), d)).collect();
    let labels: Vec<[(&str, &str); 2]> =
        ids.iter().map(|(id, d)| [("device", id.as_str()), ("path", d.path.as_str())]).collect();
    let mut gauge = |name: &str, help: &str, value: fn(&sds_node::DeviceFigures) -> Option<f64>| {
        let values: Vec<(Labels<'_>, f64)> =
            labels.iter().zip(&ids).filter_map(|(l, (_, d))| Some((l.as_slice(), value(d)?))).collect();
        all.gauges(name, help, &values);
    };
    gauge("device_healthy", "1 while the device is in use", |d| Some(f64::from(u8::from(d.trouble.is_none()))));
    gauge("device_units", "Allocation units of 64 KiB", |d| d.store.map(|(s, _)| s.aus_total as f64));
    gauge("device_units_free", "Free allocation units", |d| d.store.map(|(s, _)| s.aus_free as f64));
    gauge("journal_bytes", "Size of the journal", |d| d.store.map(|(s, _)| s.journal_total as f64));
    gauge("journal_bytes_free", "Free bytes of the journal", |d| d.store.map(|(s, _)| s.journal_free as f64));
    let mut counter = |name: &str, help: &str, value: fn(&sds_store::request::Counters) -> u64| {
        let values: Vec<(Labels<'_>, u64)> = labels
            .iter()
            .zip(&ids)
            .filter_map(|(l, (_, d))| Some((l.as_slice(), value(&d.store.as_ref()?.1))))
            .collect();
        all.counters(name, help, &values);
    };
    counter("journal_frames_total", "Journal frames written", |c| c.frames);
    counter("journal_written_bytes_total", "Bytes of journal frames", |c| c.journal_bytes);
    counter("payload_bytes_total", "Bytes of payload journaled", |c| c.payload_bytes);
    counter("home_written_bytes_total", "Bytes applied home", |c| c.home_bytes);
    counter("checkpoints_total", "Checkpoints", |c| c.checkpoints);
    counter("scrubbed_bytes_total", "Bytes that scrubs have read", |c| c.scrubbed_bytes);
    counter("scrubs_total", "Scrubs of the whole device that have ended", |c| c.scrubs);
    counter("damages_total", "Super blocks, metadata and frames that scrubs found damaged", |c| c.damages);
}

fn answer(figures: &watch::Receiver<Option<Figures>>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            let families = figures.borrow().as_ref().map(families).unwrap_or_default();
            let families: Vec<MetricFamily> = families.into_iter().filter(|f| !f.get_metric().is_empty()).collect();
            let mut text = Vec::new();
            match TextEncoder::new().encode(&families, &mut text) {
                Ok(()) => (StatusCode::OK, text),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n").into_bytes()),
            }
        }
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, b"only GET\n".to_vec()),
        _ => (StatusCode::NOT_FOUND, b"see /metrics\n".to_vec()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}

/// Serves them until the process ends.
pub(crate) async fn serve(listener: TcpListener, figures: watch::Receiver<Option<Figures>>) {
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
        let figures = figures.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request| {
                let response = answer(&figures, &request);
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
