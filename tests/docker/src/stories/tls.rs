//! An engine that finds the plugin by a file and speaks TLS with it, certificates on both sides.

use anyhow::{Context, ensure};

use crate::host::Daemon;
use crate::shell;
use crate::site::Site;

/// An authority, a certificate of the plugin and one of the engine.
fn certificates(folder: &std::path::Path, address: &str) -> anyhow::Result<()> {
    let script = format!(
        "set -eu\ncd {0}\n\
         openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=tests 2>/dev/null\n\
         for who in plugin engine; do\n\
         openssl req -newkey rsa:2048 -nodes -keyout $who.key -out $who.csr -subj /CN=$who 2>/dev/null\n\
         printf 'subjectAltName=IP:{address}\\nextendedKeyUsage=serverAuth,clientAuth\\n' >$who.ext\n\
         openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile $who.ext -out $who.pem \
         2>/dev/null\ndone\n",
        folder.display()
    );
    shell::succeed("bash", &["-c", &script]).map(drop)
}

/// The engine makes a volume over TLS; whoever shows no certificate gets nothing.
pub fn an_engine_speaks_tls_with_both_certificates(site: &mut Site) -> anyhow::Result<()> {
    let host = site.hosts.get_mut(2).context("a site has three hosts")?;
    let folder = host.home().join("tls");
    std::fs::create_dir_all(&folder)?;
    certificates(&folder, &host.address)?;
    let file = |name: &str| folder.join(name).display().to_string();
    let address = format!("{}:7443", host.address);
    host.kill(Daemon::Plugin)?;
    host.write_plugin_config(&format!(
        "discovery_file = \"/etc/docker/plugins/ashlar-tls.json\"\ntls_listen = {address:?}\ntls_certificate = {:?}\n\
         tls_key = {:?}\ntls_client_ca = {:?}\ndiscovery_ca = {:?}\ndiscovery_certificate = {:?}\ndiscovery_key = {:?}\n",
        file("plugin.pem"),
        file("plugin.key"),
        file("ca.pem"),
        file("ca.pem"),
        file("engine.pem"),
        file("engine.key")
    ))?;
    host.start(Daemon::Plugin)?;
    host.docker(&["volume", "create", "-d", "ashlar-tls", "-o", "size=32MiB", "over-tls"])?;
    let ask = "printf 'POST /VolumeDriver.List HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 0\\r\\n\\r\\n'; sleep 1";
    let client = |with: &str| {
        host.bash(&format!("({ask}) | openssl s_client -quiet -connect {address} {with} 2>/dev/null || :"))
    };
    let shown = client(&format!("-cert {} -key {}", file("engine.pem"), file("engine.key")))?;
    ensure!(shown.contains("over-tls"), "{shown}");
    let without = client("")?;
    ensure!(!without.contains("over-tls"), "who shows no certificate is served: {without}");
    host.signal(Daemon::Plugin, rustix::process::Signal::TERM)?;
    ensure!(host.bash("ls /etc/docker/plugins")?.is_empty(), "the file stays when the plugin has ended");
    host.write_plugin_config("")?;
    host.start(Daemon::Plugin)?;
    // It remembers a driver that is gone, and would look for it at every question.
    host.signal(Daemon::Engine, rustix::process::Signal::TERM)?;
    host.start(Daemon::Engine)?;
    site.scli(&["volume", "remove", "over-tls"]).map(drop)
}
