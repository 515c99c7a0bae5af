//! Figures for Prometheus.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::Context;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus::{HistogramOpts, HistogramTimer, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};
use tokio::net::TcpListener;

/// All figures of the daemon.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    bytes: IntCounterVec,
    latency: HistogramVec,
    /// Mapped volumes.
    pub volumes: IntGauge,
    /// Volumes that are block devices of this host.
    pub attached: IntGauge,
    /// Revision of the map that is followed.
    pub map_revision: IntGauge,
}

/// The figures of one volume's I/O.
#[derive(Clone)]
pub struct IoMetrics {
    metrics: Metrics,
    volume: String,
}

/// A running I/O; it counts when it is done, or as failed when it is dropped before.
pub struct IoTimer {
    timer: Option<HistogramTimer>,
}

impl IoTimer {
    /// The I/O succeeded.
    pub fn done(mut self) {
        if let Some(timer) = self.timer.take() {
            timer.observe_duration();
        }
    }
}

impl Drop for IoTimer {
    fn drop(&mut self) {
        if let Some(timer) = self.timer.take() {
            timer.stop_and_discard();
        }
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> anyhow::Result<Self> {
        let registry = Registry::new();
        let labels = ["volume", "operation"];
        let counter = |name: &str, help: &str| IntCounterVec::new(Opts::new(name, help), &labels);
        let latency = HistogramOpts::new("ashlar_sdc_io_seconds", "Time of an I/O that succeeded")
            .buckets(prometheus::exponential_buckets(50e-6, 2.0, 18)?);
        let metrics = Self {
            requests: counter("ashlar_sdc_io_total", "I/Os begun")?,
            bytes: counter("ashlar_sdc_io_bytes_total", "Bytes of the I/Os begun")?,
            latency: HistogramVec::new(latency, &["operation"])?,
            volumes: IntGauge::new("ashlar_sdc_volumes", "Volumes mapped to this host")?,
            attached: IntGauge::new("ashlar_sdc_volumes_attached", "Volumes that are block devices of this host")?,
            map_revision: IntGauge::new("ashlar_sdc_map_revision", "Revision of the map that is followed")?,
            registry,
        };
        metrics.registry.register(Box::new(metrics.requests.clone()))?;
        metrics.registry.register(Box::new(metrics.bytes.clone()))?;
        metrics.registry.register(Box::new(metrics.latency.clone()))?;
        for gauge in [&metrics.volumes, &metrics.attached, &metrics.map_revision] {
            metrics.registry.register(Box::new(gauge.clone()))?;
        }
        Ok(metrics)
    }

    /// The figures of a volume.
    pub fn of_volume(&self, volume: impl ToString) -> IoMetrics {
        IoMetrics { metrics: self.clone(), volume: volume.to_string() }
    }

    fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

impl IoMetrics {
    fn begin(&self, operation: &str, bytes: u64) -> IoTimer {
        let labels = [self.volume.as_str(), operation];
        self.metrics.requests.with_label_values(&labels).inc();
        self.metrics.bytes.with_label_values(&labels).inc_by(bytes);
        IoTimer { timer: Some(self.metrics.latency.with_label_values(&[operation]).start_timer()) }
    }

    /// A read begins.
    pub fn read(&self, bytes: u64) -> IoTimer {
        self.begin("read", bytes)
    }

    /// A write begins.
    pub fn write(&self, bytes: u64) -> IoTimer {
        self.begin("write", bytes)
    }

    /// The volume is gone: so are its figures.
    pub fn forget(&self) {
        for operation in ["read", "write"] {
            let labels = [self.volume.as_str(), operation];
            // Never counted is fine too.
            let _ = self.metrics.requests.remove_label_values(&labels);
            let _ = self.metrics.bytes.remove_label_values(&labels);
        }
    }
}

/// Serves `/metrics` for ever.
pub async fn serve(address: &str, metrics: Metrics) -> anyhow::Result<()> {
    let address: SocketAddr =
        address.parse().with_context(|| format!("metrics_listen {address}: write it as ip:port"))?;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} for metrics: is another program there?"))?;
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let metrics = metrics.clone();
            tokio::spawn(async move {
                let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let known = request.uri().path() == "/metrics";
                    let body = if known { metrics.text() } else { "see /metrics\n".to_owned() };
                    let mut response = Response::new(Full::new(Bytes::from(body)));
                    *response.status_mut() = if known { StatusCode::OK } else { StatusCode::NOT_FOUND };
                    async move { Ok::<_, Infallible>(response) }
                });
                if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await {
                    tracing::debug!(%error, "a metrics connection ended");
                }
            });
        }
    });
    Ok(())
}
