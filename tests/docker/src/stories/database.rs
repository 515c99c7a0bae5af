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

/// What runs in the container: the server under pgbench's load of four clients, and a client that notes what was committed.
const SERVE: &str = "export PATH=$PATH:/usr/lib/postgresql/15/bin PGDATA=/d/pg PGHOST=/tmp PGDATABASE=postgres; \
    [ -f $PGDATA/PG_VERSION ] || initdb --auth=trust --encoding=UTF8 --locale=C >/tmp/initdb.log 2>&1; \
    rm -f $PGDATA/postmaster.pid; \
    postgres -c listen_addresses= -c unix_socket_directories=/tmp -c max_wal_size=64MB -c checkpoint_timeout=30s \
    >>/tmp/server.log 2>&1 & \
    until psql -qc 'create table if not exists t (n bigint primary key)' >/dev/null 2>&1; do sleep 0.2; done; \
    psql -qc 'select 1 from pgbench_history limit 1' >/dev/null 2>&1 || pgbench -i -s 2 >/tmp/init.log 2>&1; \
    while :; do pgbench -n -c 4 -T 600 >>/tmp/bench.log 2>&1; sleep 0.2; done & \
    n=$(psql -qAtc 'select coalesce(max(n), 0) from t'); \
    while :; do n=$((n+1)); if psql -qc \"insert into t values ($n)\" >/dev/null 2>&1; then echo $n >>/tmp/committed; fi; done";
/// Every transaction of pgbench adds one amount to an account, a teller and a branch, and notes it: all sums are the same.
const SUMS: &str = "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), \
    (select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history), \
    (select count(*) from pgbench_history)";

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

fn sql(host: &Host, query: &str) -> anyhow::Result<String> {
    let psql = format!("/usr/lib/postgresql/15/bin/psql -h /tmp -qAtc '{query}' postgres");
    host.docker(&["exec", "pg", "sh", "-c", &psql])
}

/// Mount points of the host that may have to do with it: others use the machine too.
fn mount_points(host: &Host) -> anyhow::Result<Vec<String>> {
    let table = host.bash("cat /proc/self/mountinfo")?;
    let mut points: Vec<String> = table
        .lines()
        .filter_map(|line| {
            Some(format!("{} {}", line.split(' ').nth(4)?, line.split_once(" - ")?.1.split(' ').next()?))
        })
        .collect();
    let home = host.home().display().to_string();
    points.retain(|point| [home.as_str(), "/run/docker", "/dev/"].iter().any(|own| point.starts_with(own)));
    points.sort_unstable();
    Ok(points)
}

/// Waits until ten transactions more are committed; how long that took.
fn goes_on(site: &Site, patience: u64) -> anyhow::Result<Duration> {
    let host = site.hosts.first().context("a site has hosts")?;
    let before = committed(host).map_or(0, |all| all.len());
    wait_until("the database commits", Duration::from_secs(patience), || Ok(committed(host)?.len() > before + 10))
}

/// Who is killed in each round.
const VICTIMS: [&str; 5] = ["plugin", "engine", "sds", "mdm", "sdc"];

/// One is killed, and started again; the database goes on.
fn strike(site: &mut Site, round: usize, victim: &str) -> anyhow::Result<()> {
    let daemon = match victim {
        "sds" | "mdm" => {
            let name = if victim == "sds" { format!("sds{}", 1 + round % 3) } else { leader(site)? };
            site.dev(&["kill", &name])?;
            goes_on(site, 60)?;
            return site.dev(&["start", &name]).map(drop);
        }
        "plugin" => Daemon::Plugin,
        "engine" => Daemon::Engine,
        _ => Daemon::Sdc,
    };
    let host = site.hosts.first_mut().context("a site has hosts")?;
    host.kill(daemon)?;
    host.start(daemon)?;
    // Its containers died with it.
    if daemon == Daemon::Engine { host.docker(&["start", "pg"]).map(drop) } else { Ok(()) }
}

/// D3: ten rounds, in each of which everything is killed once.
pub fn a_database_loses_no_transaction(site: &mut Site) -> anyhow::Result<()> {
    if !Path::new(POSTGRES).exists() {
        println!("docker:   PostgreSQL 15 is not installed here: not told");
        return Ok(());
    }
    let host = site.hosts.first().context("a site has hosts")?;
    image(site, host)?;
    let mounts = mount_points(host)?;
    let options = ["-o", "size=1GiB", "-o", "uid=999", "-o", "gid=999", "-o", "mode=0700"];
    host.docker(&[&["volume", "create", "-d", "ashlar"], &options[..], &["pgdata"]].concat())?;
    let run = ["run", "--detach", "--network", "none", "--name", "pg", "--user", "999:999", "--shm-size", "64m"];
    host.docker(&[&run[..], &["-v", "pgdata:/d", "pg:1", "sh", "-c", SERVE]].concat())?;
    goes_on(site, 90)?;
    for round in 0..10 {
        let mut pauses = Vec::new();
        for victim in VICTIMS {
            strike(site, round, victim)?;
            let pause = goes_on(site, 90)?;
            pauses.push(format!("{victim} {:.1} s", pause.as_secs_f64()));
            let mounted = site.hosts.first().context("a site has hosts")?.volume_mounts()?;
            ensure!(mounted.len() == 1, "after {victim} was killed: {mounted:?}");
        }
        println!("docker:   round {round}: ten commits more after {}", pauses.join(", "));
    }
    check(site.hosts.first().context("a site has hosts")?)?;
    let host = site.hosts.first().context("a site has hosts")?;
    host.docker(&["rm", "--force", "pg"])?;
    host.demand_clean()?;
    let left = mount_points(host)?;
    ensure!(left == mounts, "mounts before {mounts:?}, after {left:?}");
    host.docker(&["volume", "rm", "pgdata"]).map(drop)
}

/// What was noted as committed is there, the sums are right.
fn check(host: &Host) -> anyhow::Result<()> {
    let noted = committed(host)?;
    let there = sql(host, "select n from t")?;
    let there: std::collections::BTreeSet<u64> = there.lines().filter_map(|line| line.trim().parse().ok()).collect();
    let lost: Vec<&u64> = noted.iter().filter(|n| !there.contains(n)).collect();
    ensure!(lost.is_empty(), "committed and lost: {lost:?}");
    let sums = sql(host, SUMS)?;
    let sums: Vec<i64> = sums.split('|').map(|sum| sum.parse().context("no sum")).collect::<anyhow::Result<_>>()?;
    ensure!(sums.len() == 5 && sums[..4].iter().all(|sum| *sum == sums[0]), "the sums differ: {sums:?}");
    println!(
        "docker:   {} transactions were noted as committed, all are there; the sums of {} others are right",
        noted.len(),
        sums[4]
    );
    Ok(())
}

/// The name of the metadata manager that leads.
fn leader(site: &Site) -> anyhow::Result<String> {
    let list = site.list("mdm")?;
    let found = list.iter().find(|mdm| mdm["leader"] == true);
    found.and_then(|mdm| mdm["name"].as_str()).map(str::to_owned).context("no leader")
}
