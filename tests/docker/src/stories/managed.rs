//! The plugin as a managed one: built, created, set, enabled; its data is the same data; it is upgraded and killed under a
//! running container.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::host::Host;
use crate::shell::{self, wait_until};
use crate::site::Site;
use crate::stories::walk::first;

/// Where the repository is.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Builds a plugin's folder.
pub fn build(site: &Site, host: &Host, name: &str) -> anyhow::Result<PathBuf> {
    let folder = host.home().join(name);
    let mut build = std::process::Command::new(format!("{ROOT}/plugin/managed/build"));
    build.arg("--program").arg(site.program("ashlar-docker")).arg("--folder").arg(&folder);
    shell::run(&mut build)?;
    Ok(folder)
}

/// What an instance is to be told of this host.
pub fn settings(site: &Site, host: &Host, name: &str) -> anyhow::Result<Vec<String>> {
    let (etc, state) = (host.home().join("managed-etc"), host.home().join(format!("{name}-state")));
    std::fs::create_dir_all(&etc)?;
    std::fs::create_dir_all(&state)?;
    std::fs::copy(site.variable("ASHLAR_CA")?, etc.join("authority.pem")).context("no authority")?;
    std::fs::copy(site.password_file()?, etc.join("docker-password")).context("no password")?;
    Ok(vec![
        format!("sdc.source={}/run", host.home().display()),
        format!("etc.source={}", etc.display()),
        format!("state.source={}", state.display()),
        "ASHLAR_DOCKER_DEFAULT_SIZE=64MiB".to_owned(),
        "ASHLAR_DOCKER_RELEASE_UNUSED_S=6".to_owned(),
    ])
}

/// Builds a plugin, sets it to this host's things and enables it.
pub fn install(site: &Site, host: &Host, name: &str) -> anyhow::Result<()> {
    let folder = build(site, host, name)?;
    host.docker(&["plugin", "create", name, &folder.display().to_string()])?;
    let settings = settings(site, host, name)?;
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    host.docker(&[&["plugin", "set", name], &settings[..]].concat())?;
    host.docker(&["plugin", "enable", name]).map(drop)
}

/// Takes it away.
pub fn uninstall(host: &Host, name: &str) -> anyhow::Result<()> {
    host.docker(&["plugin", "disable", "--force", name])?;
    host.docker(&["plugin", "rm", "--force", name]).map(drop)
}

/// D2 through the managed plugin, beside the legacy one on the same host.
pub fn the_managed_plugin_serves_the_same_volumes(site: &mut Site) -> anyhow::Result<()> {
    let host = first(site)?;
    host.docker(&["volume", "create", "-d", "ashlar", "-o", "size=64MiB", "both"])?;
    host.container(&["-v", "both:/d"], "echo legacy > /d/f")?;
    install(site, host, "managed")?;
    let told = (|| {
        host.docker(&["volume", "create", "-d", "managed:latest", "-o", "size=96MiB", "own"])?;
        host.container(&["-v", "own:/d"], "echo hi > /d/f && sync")?;
        ensure!(host.container(&["-v", "own:/d"], "cat /d/f")? == "hi");
        let run = ["run", "--detach", "--network", "none", "--name", "m1", "-v", "own:/d", "bb:1", "sh", "-c"];
        host.docker(&[&run[..], &["while :; do date > /d/t && sync; sleep 0.1; done"]].concat())?;
        // Killed, it is started again by the engine, and the container does not notice.
        let own = host.home().join("managed-etc");
        let kill = format!(
            "for p in /proc/[0-9]*; do if [ \"$(cat $p/comm)\" = ashlar-docker ] && grep -q {} $p/mountinfo; then \
             kill -9 ${{p#/proc/}}; fi; done 2>/dev/null",
            own.display()
        );
        host.bash(&kill)?;
        wait_until("the engine has started it again", Duration::from_secs(30), || {
            host.docker(&["volume", "inspect", "own"]).map(|_| true)
        })?;
        host.docker(&["exec", "m1", "sh", "-c", "echo on > /d/g && sync"])?;
        host.docker(&["rm", "--force", "m1"])?;
        ensure!(host.container(&["-v", "own:/d"], "cat /d/g")? == "on");
        // On another host by its legacy plugin.
        let second = site.hosts.get(1).context("a site has two hosts")?;
        ensure!(second.container(&["--volume-driver", "ashlar", "-v", "own:/d"], "cat /d/f")? == "hi");
        second.docker(&["volume", "rm", "own"])?;
        Ok(())
    })();
    let log = std::fs::read_to_string(host.log(crate::host::Daemon::Engine)).unwrap_or_default();
    if told.is_err() {
        log.lines().filter(|line| line.contains("plugin=")).for_each(|line| eprintln!("{line}"));
    }
    uninstall(host, "managed")?;
    told?;
    host.docker(&["volume", "rm", "both"]).map(drop)
}
