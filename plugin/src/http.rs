//! HTTP: bodies bounded, connections bounded, one request on each connection.
//!
//! Every answer closes its connection. dockerd may send its next request on a kept connection at the moment that we close
//! it, and would then repeat it without its body; a connection that was never kept cannot race.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::api::Api;
use crate::wire::{Endpoint, Named, Reply};

/// The longest body: options of a volume are a few hundred bytes.
const BODY_BYTES_MAX: usize = 256 << 10;
/// How long the head and the body of a request may take to come.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);
/// What dockerd calls its JSON.
const JSON: HeaderValue = HeaderValue::from_static("application/vnd.docker.plugins.v1.2+json");

/// The connection is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("closed without an answer: it cannot be told")]
struct HungUp;

/// Serves one connection until its answer is sent or its peer is gone; then whatever was begun for it is abandoned.
pub async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, api: Arc<Api>) {
    let service = service_fn(move |request| {
        let api = api.clone();
        async move { answer(&api, request).await }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_PATIENCE)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended");
    }
}

async fn answer(api: &Api, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, HungUp> {
    let path = request.uri().path().to_owned();
    let reply = match Endpoint::of(&path) {
        None => bad(404, format!("there is no endpoint {}", path.chars().take(64).collect::<String>().escape_debug())),
        Some(_) if request.method() != Method::POST => bad(405, "requests are posted".to_owned()),
        Some(endpoint) => match body(request.into_body()).await {
            Err(reply) => reply,
            Ok(bytes) => dispatch(api, endpoint, &bytes).await,
        },
    };
    respond(reply)
}

fn bad(status: u16, text: String) -> Reply {
    Reply::Bad { status, text }
}

/// The whole body. One that is too long is read to its end and thrown away: who still sends does not hear an answer.
async fn body(body: Incoming) -> Result<Bytes, Reply> {
    match tokio::time::timeout(REQUEST_PATIENCE, collect(body)).await {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => Err(bad(413, format!("the request is longer than {BODY_BYTES_MAX} bytes"))),
        Ok(Err(_)) => Err(Reply::HangUp),
        Err(_) => Err(bad(408, "the request did not come in time".to_owned())),
    }
}

/// `None`: too long.
async fn collect(mut body: Incoming) -> hyper::Result<Option<Bytes>> {
    let mut bytes = BytesMut::new();
    let mut is_too_long = false;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        is_too_long |= bytes.len() + data.len() > BODY_BYTES_MAX;
        if is_too_long {
            bytes.clear();
        } else {
            bytes.extend_from_slice(&data);
        }
    }
    Ok((!is_too_long).then(|| bytes.freeze()))
}

async fn dispatch(api: &Api, endpoint: Endpoint, bytes: &Bytes) -> Reply {
    if !endpoint.is_named() {
        return api.answer(endpoint, Named::default()).await;
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        // dockerd repeats a request without its body: which volume it is about cannot be told.
        return Reply::HangUp;
    }
    match serde_json::from_slice(bytes) {
        Ok(named) => api.answer(endpoint, named).await,
        Err(error) => bad(400, format!("the request is no JSON object as expected: {error}")),
    }
}

fn respond(reply: Reply) -> Result<Response<Full<Bytes>>, HungUp> {
    let (status, object) = match reply {
        Reply::Object(object) => (200, object),
        Reply::Refused(text) => (200, json!({ "Err": text })),
        Reply::Bad { status, text } => (status, json!({ "Err": text })),
        Reply::HangUp => return Err(HungUp),
    };
    let mut text = object.to_string();
    text.push('\n');
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    Ok(response)
}
