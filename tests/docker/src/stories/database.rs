//! A real database under load while everything around it is killed, one after the other: no committed transaction is lost.
//!
//! Long, and only where PostgreSQL 15 of Debian is installed on this machine: its programs become an image.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::host::{Daemon, Host};
use crate::shell::{self, wait_until};
use crate::site::Site;

/// Debian's PostgreSQL.
const POSTGRES: &str = "/usr/lib/postgresql/15";

/// What runs in the container: the server, and a client that notes what was committed.
const SERVE: &str = "export PATH=$PATH:/usr/lib/postgresql/15/bin PGDATA=/d/pg PGHOST=/tmp; \
    [ -f $PGDATA/PG_VERSION ] || initdb --auth=trust --encoding=UTF8 --locale=C >/tmp/initdb.log 2>&1; \
    rm -f $PGDATA/postmaster.pid; \
    postgres -c listen_addresses= -c unix_socket_directories=/tmp >>/tmp/server.log 2>&1 & \
    until psql -qc 'create table if not exists t (n bigint primary key)' postgres >/dev/null 2>&1; do sleep 0.2; done; \
    n=$(psql -qAtc 'select coalesce(max(n), 0) from t' postgres); \
    while :; do n=$((n+1)); if psql -qc \"insert into t values ($n)\" postgres >/dev/null 2>&1; then echo $n >>/tmp/committed; fi; done";

fn image(site: &Site, host: &Host) -> anyhow::Result<()> {
    let folder = host.home().join("pg");
    let script = format!(
        "set -eu\nroot={0}\nmkdir -p $root/bin $root/tmp $root/etc $root/proc $root/sys $root/dev $root/usr/share\n\
         chmod 1777 $root/tmp\ncp \"$(command -v busybox)\" $root/bin/busybox\n\
         for a in $($root/bin/busybox --list); do [ $a = busybox ] || ln -sf busybox $root/bin/$a; done\n\
         echo 'pg:x:999:999::/tmp:/bin/sh' >$root/etc/passwd; echo 'pg:x:999:' >$root/etc/group\n\
         mkdir -p $root{1}\ncp -r {1}/bin {1}/lib $root{1}/\ncp -r /usr/share/postgresql /usr/share/zoneinfo $root/usr/share/\n\
         for l in $(ldd {1}/bin/* {1}/lib/*.so 2>/dev/null | grep -o '/[^ )]*' | grep -v ':$' | sort -u); do \
         [ -f $l ] && mkdir -p $root$(dirname $l) && cp -L $l $root$l || :; done\n\
         tar -C $root -cf $root.tar .\nrm -rf $root\n",
        folder.display(),
        POSTGRES
    );
    shell::succeed("bash", &["-c", &script])?;
    for host in site.hosts.iter().take(1) {
        host.docker(&["import", &format!("{}.tar", folder.display()), "pg:1"])?;
    }
    Ok(())
}

fn committed(host: &Host) -> anyhow::Result<Vec<u64>> {
    let text = host.docker(&["exec", "pg", "sh", "-c", "cat /tmp/committed 2>/dev/null || :"])?;
    // The last line may be cut where its writer was killed.
    let lines = text.lines().map(|line| line.trim().parse().context("no number"));
    lines.collect()
}

/// D3: ten rounds.
pub fn a_database_loses_no_transaction(site: &mut Site) -> anyhow::Result<()> {
    if !Path::new(POSTGRES).exists() {
        println!("docker:   PostgreSQL 15 is not installed here: not told");
        return Ok(());
    }
    let host = site.hosts.first().context("a site has hosts")?;
    image(site, host)?;
    let options = ["-o", "size=1GiB", "-o", "uid=999", "-o", "gid=999", "-o", "mode=0700"];
    host.docker(&[&["volume", "create", "-d", "ashlar"], &options[..], &["pgdata"]].concat())?;
    let run = ["run", "--detach", "--network", "none", "--name", "pg", "--user", "999:999", "--shm-size", "64m"];
    host.docker(&[&run[..], &["-v", "pgdata:/d", "pg:1", "sh", "-c", SERVE]].concat())?;
    let grows = |site: &Site, patience| -> anyhow::Result<Duration> {
        let host = site.hosts.first().context("a site has hosts")?;
        let before = committed(host).map_or(0, |all| all.len());
        wait_until("the database commits", Duration::from_secs(patience), || Ok(committed(host)?.len() > before + 10))
    };
    grows(site, 60)?;
    for round in 0..10 {
        let victim = round % 5;
        match victim {
            0 | 1 | 4 => {
                let daemon = [Daemon::Plugin, Daemon::Engine, Daemon::Sdc][if victim == 4 { 2 } else { victim }];
                let host = site.hosts.first_mut().context("a site has hosts")?;
                host.kill(daemon)?;
                host.start(daemon)?;
                if daemon == Daemon::Engine {
                    host.docker(&["start", "pg"])?;
                }
            }
            2 => {
                let name = format!("sds{}", 1 + round % 3);
                site.dev(&["kill", &name])?;
                grows(site, 60)?;
                site.dev(&["start", &name])?;
            }
            _ => {
                let leader = leader(site)?;
                site.dev(&["kill", &leader])?;
                grows(site, 60)?;
                site.dev(&["start", &leader])?;
            }
        }
        let pause = grows(site, 90)?;
        let names = ["plugin", "engine", "sds", "mdm", "sdc"];
        println!(
            "docker:   round {round}: {} was killed, ten commits more after {:.1} s",
            names[victim],
            pause.as_secs_f64()
        );
    }
    let host = site.hosts.first().context("a site has hosts")?;
    let noted = committed(host)?;
    let query = "/usr/lib/postgresql/15/bin/psql -h /tmp -qAtc 'select n from t' postgres";
    let there = host.docker(&["exec", "pg", "sh", "-c", query])?;
    let there: std::collections::BTreeSet<u64> = there.lines().filter_map(|line| line.trim().parse().ok()).collect();
    let lost: Vec<&u64> = noted.iter().filter(|n| !there.contains(n)).collect();
    ensure!(lost.is_empty(), "committed and lost: {lost:?}");
    println!("docker:   {} transactions were noted as committed, all are there", noted.len());
    host.docker(&["rm", "--force", "pg"])?;
    host.demand_clean()?;
    host.docker(&["volume", "rm", "pgdata"]).map(drop)
}

/// The name of the metadata manager that leads.
fn leader(site: &Site) -> anyhow::Result<String> {
    let list = site.list("mdm")?;
    let found = list.iter().find(|mdm| mdm["leader"] == true);
    found.and_then(|mdm| mdm["name"].as_str()).map(str::to_owned).context("no leader")
}
