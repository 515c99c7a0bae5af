//! Other people's clients against our server. A test is skipped, and says so, where its tool is missing.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../examples/hammer.rs"]
mod hammer;

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;

use common::{Rig, have, run, succeed};
use sdc_nbd::limits::Limits;

const MIB: u64 = 1 << 20;

fn rig() -> Rig {
    Rig::new(64 * MIB, Limits::default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdinfo_lists_describes_and_maps_exports() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let rig = rig();
    let list = succeed("nbdinfo", &["--list", "--json", &rig.uri("")]).await;
    assert!(list.contains("\"disk\"") && list.contains("\"readonly\""), "{list}");
    let json = succeed("nbdinfo", &["--json", &rig.uri("disk")]).await;
    for line in [
        "\"protocol\": \"newstyle-fixed\"",
        "\"structured\": true",
        "\"export-size\": 67108864",
        "\"base:allocation\"",
        "\"is_read_only\": false",
        "\"can_multi_conn\": true",
        "\"can_fua\": true",
        "\"can_flush\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"can_fast_zero\": true",
        "\"can_cache\": true",
        "\"can_df\": true",
        "\"block_size_minimum\": 1",
        "\"block_size_preferred\": 4096",
        "\"block_size_maximum\": 33554432",
    ] {
        assert!(json.contains(line), "{line} in {json}");
    }
    assert!(succeed("nbdinfo", &["--json", &rig.uri("readonly")]).await.contains("\"is_read_only\": true"));
    let map = succeed("nbdinfo", &["--map", &rig.uri("disk")]).await;
    assert!(map.split_whitespace().eq(["0", "67108864", "3", "hole,zero"]), "{map}");
    assert!(!run("nbdinfo", &[&rig.uri("nobody")]).await.status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdcopy_moves_an_image_in_both_directions() {
    if !have(&["nbdcopy"]) {
        return;
    }
    let rig = rig();
    let (from, back) = (rig.directory.path().join("from"), rig.directory.path().join("back"));
    let mut state = 1u64;
    let mut image = vec![0u8; 64 << 20];
    for block in image.chunks_exact_mut(65536).step_by(3) {
        for word in block.chunks_exact_mut(8) {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            word.copy_from_slice(&state.to_be_bytes());
        }
    }
    std::fs::write(&from, &image).unwrap();
    succeed("nbdcopy", &[from.to_str().unwrap(), &rig.uri("disk")]).await;
    let map = succeed("nbdinfo", &["--map", &rig.uri("disk")]).await;
    assert!(map.contains("hole,zero"), "zeroes are not stored: {map}");
    succeed("nbdcopy", &["--flush", &rig.uri("disk"), back.to_str().unwrap()]).await;
    assert!(std::fs::read(&back).unwrap() == image, "the copy differs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdsh_gets_the_right_answer_to_every_command_and_error() {
    if !have(&["nbdsh"]) {
        return;
    }
    let rig = rig();
    let script = r#"
import errno, nbd, sys
uri, uri_ro = sys.argv_uris
def fails(code, call):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == code, (error.errnum, code)
        return
    raise AssertionError("should have failed with %d" % code)
h = nbd.NBD(); h.add_meta_context("base:allocation"); h.connect_uri(uri)
h.set_strict_mode(0)
size = h.get_size()
h.pwrite(b"abc", 4095)
assert h.pread(5, 4094) == b"\0abc\0"
h.pwrite(b"x" * 10000, 777, nbd.CMD_FLAG_FUA)
assert h.pread(10000, 777, nbd.CMD_FLAG_DF) == b"x" * 10000
h.flush(); h.cache(4096, 0)
h.zero(4096, 4096)
assert h.pread(4096, 4096) == bytes(4096)
h.pwrite(b"y" * 4096, 4096)
h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.zero(4096, 8192, nbd.CMD_FLAG_FAST_ZERO)
fails(errno.ENOTSUP, lambda: h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE))
h.trim(4096, 0)
found = []
h.block_status(65536, 0, lambda context, offset, entries, err: found.append((context, offset, entries)) or 0)
assert found[0][0] == "base:allocation" and found[0][1] == 0, found
assert sum(found[0][2][0::2]) <= 65536, found
found = []
h.block_status(65536, 0, lambda context, offset, entries, err: found.append(entries) or 0, nbd.CMD_FLAG_REQ_ONE)
assert len(found[0]) == 2, found
big = bytes(range(256)) * (32 * 1024 * 4)
assert len(big) == 32 * 1024 * 1024
h.pwrite(big, 1)
assert h.pread(len(big), 1) == big
fails(errno.EINVAL, lambda: h.pread(2, size - 1))
fails(errno.ENOSPC, lambda: h.pwrite(b"ab", size - 1))
fails(errno.ENOSPC, lambda: h.zero(2, size - 1))
fails(errno.EINVAL, lambda: h.trim(2, size - 1))
fails(errno.EINVAL, lambda: h.block_status(2, size - 1, lambda *a: 0))
fails(errno.EINVAL, lambda: h.pread(0, 0))
fails(errno.EINVAL, lambda: h.cache(2, size - 1))
fails(errno.EOVERFLOW, lambda: h.pread((32 << 20) + 1, 0))
fails(errno.EOVERFLOW, lambda: h.pwrite(bytes((32 << 20) + 1), 0))
fails(errno.EINVAL, lambda: h.pwrite(b"a", 0, nbd.CMD_FLAG_NO_HOLE))
assert h.pread(5, 1) == big[:5], "the connection goes on after errors"
h.shutdown()
r = nbd.NBD(); r.connect_uri(uri_ro); r.set_strict_mode(0)
assert r.is_read_only()
fails(errno.EPERM, lambda: r.pwrite(b"a", 0))
fails(errno.EPERM, lambda: r.zero(1, 0))
fails(errno.EPERM, lambda: r.trim(1, 0))
assert r.pread(3, 0) == bytes(3)
s = nbd.NBD(); s.set_request_structured_replies(False); s.connect_uri(uri)
assert not s.get_structured_replies_negotiated()
fails(errno.EINVAL, lambda: s.pread((32 << 20) + 1, 0))
s.zero(1 << 20, 1 << 20); s.pwrite(b"q", (1 << 20) + 5)
assert s.pread(10, 1 << 20) == b"\0" * 5 + b"q" + b"\0" * 4
o = nbd.NBD(); o.set_opt_mode(True); o.connect_uri(uri)
names = []
o.opt_list(lambda name, text: names.append(name) or 0)
assert sorted(names) == ["disk", "readonly"], names
contexts = []
o.opt_list_meta_context(lambda name: contexts.append(name) or 0)
assert contexts == ["base:allocation"], contexts
o.opt_info(); assert o.get_size() == size
o.set_export_name("nobody"); fails(errno.ENOENT, o.opt_go)
o.set_export_name("disk"); o.opt_go(); assert o.pread(5, 1) == big[:5]
"#;
    let uris = format!("import sys; sys.argv_uris = ({:?}, {:?})", rig.uri("disk"), rig.uri("readonly"));
    succeed("nbdsh", &["-c", &uris, "-c", script]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_converts_compares_and_does_io_of_every_kind() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let rig = rig();
    let image = rig.directory.path().join("image.raw");
    let path = image.to_str().unwrap();
    let uri = rig.uri("disk");
    succeed("qemu-img", &["create", "-q", "-f", "raw", path, "64M"]).await;
    succeed("qemu-io", &["-f", "raw", "-c", "write -P 7 1M 3M", "-c", "write -P 9 40M 513", path]).await;
    succeed("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", path, &uri]).await;
    succeed("qemu-img", &["compare", "-f", "raw", "-F", "raw", path, &uri]).await;
    let map = succeed("qemu-img", &["map", "--output=json", "-f", "raw", &uri]).await;
    assert!(map.contains("\"start\": 1048576, \"length\": 3145728"), "{map}");
    let commands = [
        "write -P 1 0 64k",
        "write -f -P 2 100 5000",
        "read -P 2 100 5000",
        "read -P 1 0 100",
        "write -z 4096 4096",
        "read -P 0 4096 1000",
        "write -z -u 8k 8k",
        "discard 16k 16k",
        "read -P 0 16k 16k",
        "aio_write -P 3 1000 4000",
        "aio_write -P 4 9000 4000",
        "aio_flush",
        "read -P 3 1000 4000",
        "read -P 4 9000 4000",
        "flush",
    ];
    let mut arguments = vec!["-f", "raw"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    arguments.push(&uri);
    let said = succeed("qemu-io", &arguments).await;
    assert!(!said.contains("failed"), "{said}");
    succeed("qemu-img", &["bench", "-q", "-w", "-c", "2000", "-d", "32", "-f", "raw", &uri]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_keeps_an_image_of_its_own_in_an_export() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let rig = rig();
    let uri = rig.uri("disk");
    succeed("qemu-img", &["create", "-q", "-f", "qcow2", &uri, "32M"]).await;
    succeed("qemu-io", &["-f", "qcow2", "-c", "write -P 5 1M 2M", "-c", "discard 2M 64k", "-c", "flush", &uri]).await;
    succeed("qemu-io", &["-f", "qcow2", "-c", "read -P 5 1M 1M", "-c", "read -P 0 2M 64k", &uri]).await;
    succeed("qemu-img", &["check", "-q", "-f", "qcow2", &uri]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fio_verifies_what_it_wrote_at_depth_32() {
    if !have(&["fio"]) {
        return;
    }
    let rig = rig();
    let uri = format!("--uri={}", rig.uri("disk"));
    let arguments = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--bsrange=4k-1m",
        "--iodepth=32",
        "--size=64m",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--io_size=128m",
        "--randrepeat=0",
        "--verify_state_save=0",
        "--output-format=terse",
    ];
    succeed("fio", &arguments).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdkit_as_a_client_reads_what_it_writes() {
    if !have(&["nbdkit", "nbdsh"]) {
        return;
    }
    let rig = rig();
    let uri = format!("uri={}", rig.uri("disk"));
    let script = "nbdsh -u \"$uri\" -c 'h.pwrite(b\"k\"*9999, 12345); h.zero(4096, 16384); h.trim(4096, 0); h.flush()' \
                  -c 'assert h.pread(9999, 12345)[:4000] == b\"k\"*4000'";
    succeed("nbdkit", &["-U", "-", "nbd", &uri, "--run", script]).await;
}

/// The `nbd` crate: newstyle without options, one request at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nbd_crate_reads_what_it_writes() {
    let rig = rig();
    let socket = rig.socket();
    let work = move || {
        let mut stream = UnixStream::connect(socket).unwrap();
        let export = nbd::client::handshake(&mut stream, b"disk").unwrap();
        assert_eq!((export.size, export.readonly), (64 * MIB, false));
        let mut client = nbd::client::NbdClient::new(&mut stream, &export);
        client.seek(SeekFrom::Start(5000)).unwrap();
        client.write_all(&[7; 10_000]).unwrap();
        client.flush().unwrap();
        client.seek(SeekFrom::Start(4999)).unwrap();
        let mut found = [1; 10_002];
        client.read_exact(&mut found).unwrap();
        assert!(found[0] == 0 && found[10_001] == 0 && found[1..10_001] == [7; 10_000]);
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_requests_of_every_kind_leave_what_the_model_says() {
    let rig = Rig::new(3 * MIB + 512, Limits::default());
    let (socket, state) = (rig.socket(), rig.directory.path().join("state"));
    let work = move || {
        assert_eq!(hammer::run(&socket, "disk", &state, 3000), Ok(3000));
        assert_eq!(hammer::run(&socket, "disk", &state, 2000), Ok(5000), "a second run goes on where the first ended");
    };
    tokio::task::spawn_blocking(work).await.unwrap();
    rig.disk.blocks.lock().unwrap()[3] = Some(vec![0xee; common::BLOCK].into());
    let (socket, state) = (rig.socket(), rig.directory.path().join("state"));
    let again = tokio::task::spawn_blocking(move || hammer::run(&socket, "disk", &state, 1)).await.unwrap();
    assert!(again.is_err(), "bytes that changed in between are noticed");
}
