//! Requests that no engine would send: an error, bounded memory, nothing made.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::host::Host;
use crate::site::Site;
use crate::stories::walk::first;

/// Memory that the plugin holds, in KiB.
fn resident_kib(host: &Host) -> anyhow::Result<u64> {
    let pid = host.pid(crate::host::Daemon::Plugin)?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    line.trim().trim_end_matches(" kB").trim().parse().context("no number")
}

/// Bad JSON, bad names, unknown endpoints, a body of 100 MB, thousands of connections.
pub fn hostile_requests_get_an_error_and_make_nothing(site: &mut Site) -> anyhow::Result<()> {
    let host = first(site)?;
    let volumes = site.list("volume")?.len();
    let mode = std::fs::metadata(host.plugin_socket()?)?.mode() & 0o777;
    ensure!(mode == 0o600, "the socket has mode {mode:o}");
    let endpoints = ["Create", "Mount", "Unmount", "Remove", "Path", "Get"];
    for endpoint in endpoints {
        let path = format!("/VolumeDriver.{endpoint}");
        for name in ["", "..", "../../etc", "a/b", "/x", "a b", "ä", "日本", "-x", "a\u{0}b", "a\nb", &"x".repeat(300)]
        {
            let (status, answer) = host.request(&path, &json!({"Name": name, "ID": "1"}).to_string())?;
            let why = answer["Err"].as_str().unwrap_or_default();
            ensure!(status == 200 && !why.is_empty(), "{path} {name:?}: {status} {answer}");
        }
        for body in
            ["{", "[]", "7", "\"x\"", "{\"Name\":7}", "{\"Name\":\"x\",\"Opts\":[1]}", "\u{0}", "{\"Name\":\"x\"} {}"]
        {
            let (status, answer) = host.request(&path, body)?;
            ensure!(answer["Err"] != "" && answer["Err"].is_string(), "{path} {body:?}: {status} {answer}");
        }
    }
    let (status, answer) = host.request("/VolumeDriver.Format", "{}")?;
    ensure!(status == 404 && answer["Err"] != "", "{answer}");
    ensure!(host.request("/VolumeDriver.Mount", &json!({"Name": "x", "ID": "a b"}).to_string())?.1["Err"] != "");
    let before = resident_kib(host)?;
    let huge = format!("{{\"Name\":\"x\",\"Opts\":{{\"size\":\"{}\"}}}}", "9".repeat(100 << 20));
    let (status, answer) = host.request("/VolumeDriver.Create", &huge)?;
    ensure!(status == 413 && answer["Err"] != "", "{status} {answer}");
    drop(huge);
    let path = host.plugin_socket()?;
    let mut idle = Vec::new();
    for _ in 0..10_000 {
        let mut stream = match UnixStream::connect(&path) {
            Ok(stream) => stream,
            // The queue of the socket is full: as many as the kernel lets wait.
            Err(_) => break,
        };
        // Some are closed meanwhile, which is as good.
        let _closed = stream.write_all(b"POST /VolumeDriver.List HTTP/1.1\r\n");
        idle.push(stream);
        if idle.len() > 900 {
            idle.drain(..450);
        }
    }
    let grown = resident_kib(host)?.saturating_sub(before);
    println!("docker:   the plugin holds {grown} KiB more after it");
    ensure!(grown < 64 << 10, "the plugin grew by {grown} KiB");
    drop(idle);
    ensure!(host.request("/VolumeDriver.List", "")?.0 == 200, "and serves");
    ensure!(site.list("volume")?.len() == volumes, "something was made");
    ensure!(host.records()?.is_empty() && host.volume_mounts()?.is_empty());
    Ok(())
}
