//! The port for other hosts: TLS first, and only for clients of the authority.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use common::{Rig, have, run, succeed};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use sdc_nbd::limits::Limits;
use sdc_nbd::network::{NetworkError, NetworkListener, TlsFiles};
use sdc_nbd::wire::option::{InfoRequest, OptionHead, code};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LONG: Duration = Duration::from_secs(20);

/// An authority, a server's certificate and a client's, in files with the names that libnbd and qemu look for.
fn certify(directory: &Path) -> TlsFiles {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(vec![]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::DigitalSignature];
    authority.distinguished_name.push(rcgen::DnType::CommonName, "authority");
    std::fs::write(directory.join("ca-cert.pem"), authority.self_signed(&authority_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    for role in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, role);
        let usage = match role {
            "server" => rcgen::ExtendedKeyUsagePurpose::ServerAuth,
            _ => rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        };
        params.extended_key_usages = vec![usage];
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(directory.join(format!("{role}-cert.pem")), certificate.pem()).unwrap();
        std::fs::write(directory.join(format!("{role}-key.pem")), key.serialize_pem()).unwrap();
    }
    TlsFiles {
        certificate: directory.join("server-cert.pem"),
        key: directory.join("server-key.pem"),
        authority: directory.join("ca-cert.pem"),
    }
}

struct Port {
    rig: Rig,
    directory: TempDir,
    address: SocketAddr,
    running: tokio::task::JoinHandle<()>,
}

impl Port {
    async fn open(limits: Limits) -> Self {
        let rig = Rig::new(16 << 20, limits);
        let directory = tempfile::tempdir().unwrap();
        let files = certify(directory.path());
        let listener = NetworkListener::bind("127.0.0.1:0".parse().unwrap(), files).await.unwrap();
        let address = listener.local_address().unwrap();
        let server = rig.server.clone();
        let running = tokio::spawn(async move { listener.run(&server).await });
        Self { rig, directory, address, running }
    }

    fn uri(&self, certificates: &Path) -> String {
        let port = self.address.port();
        format!("nbds://localhost:{port}/disk?tls-certificates={}", certificates.display())
    }

    /// A connection without TLS, greeted.
    async fn dial(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.read_exact(&mut [0; 18]).await.unwrap();
        stream.write_all(&3u32.to_be_bytes()).await.unwrap();
        stream
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn answer(stream: &mut TcpStream) -> u32 {
    let mut head = [0; 20];
    stream.read_exact(&mut head).await.unwrap();
    let length = u32::from_be_bytes(head[16..20].try_into().unwrap());
    stream.read_exact(&mut vec![0; length as usize]).await.unwrap();
    u32::from_be_bytes(head[12..16].try_into().unwrap())
}

async fn ended(stream: &mut TcpStream) {
    let mut sink = Vec::new();
    // An error is an end too.
    let _ = tokio::time::timeout(LONG, stream.read_to_end(&mut sink)).await.expect("the server hangs up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_a_certificate_uses_a_volume() {
    if !have(&["nbdsh", "nbdinfo", "nbdcopy"]) {
        return;
    }
    let port = Port::open(Limits::default()).await;
    let uri = port.uri(port.directory.path());
    let described = succeed("nbdinfo", &[&uri]).await;
    assert!(described.contains("protocol: newstyle-fixed with TLS, using structured packets"), "{described}");
    let script = format!(
        "h.set_tls(nbd.TLS_REQUIRE); h.connect_uri({uri:?})\n\
         h.pwrite(b'secret' * 1000, 4321, nbd.CMD_FLAG_FUA); assert h.pread(6000, 4321) == b'secret' * 1000\n\
         assert h.get_tls_negotiated()"
    );
    succeed("nbdsh", &["-c", "import nbd", "-c", "h.set_uri_allow_local_file(True)", "-c", &script]).await;
    let image = port.directory.path().join("image");
    succeed("nbdcopy", &[&uri, image.to_str().unwrap()]).await;
    assert_eq!(std::fs::read(image).unwrap()[4321..4327], *b"secret");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_uses_a_volume_over_tls() {
    if !have(&["qemu-img"]) {
        return;
    }
    let port = Port::open(Limits::default()).await;
    let credentials = format!("tls-creds-x509,id=tls,endpoint=client,dir={}", port.directory.path().display());
    let image = format!(
        "driver=nbd,server.type=inet,server.host=localhost,server.port={},export=disk,tls-creds=tls",
        port.address.port()
    );
    let described = succeed("qemu-img", &["info", "--object", &credentials, "--image-opts", &image]).await;
    assert!(described.contains("16 MiB"), "{described}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_without_a_certificate_of_the_authority_learns_anything() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let port = Port::open(Limits::default()).await;
    // Without TLS.
    let plain = format!("nbd://localhost:{}/disk", port.address.port());
    assert!(!run("nbdinfo", &[&plain]).await.status.success());
    assert!(!run("nbdinfo", &["--list", &plain]).await.status.success());
    // With one of another authority.
    let other = tempfile::tempdir().unwrap();
    certify(other.path());
    std::fs::copy(port.directory.path().join("ca-cert.pem"), other.path().join("ca-cert.pem")).unwrap();
    assert!(!run("nbdinfo", &[&port.uri(other.path())]).await.status.success());
    // With none at all.
    std::fs::remove_file(other.path().join("client-cert.pem")).unwrap();
    std::fs::remove_file(other.path().join("client-key.pem")).unwrap();
    assert!(!run("nbdinfo", &[&port.uri(other.path())]).await.status.success());
    assert_eq!(*port.rig.disk.arrived.borrow(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_tls_every_option_is_refused_and_the_old_one_ends_the_talk() {
    let port = Port::open(Limits::default()).await;
    let mut stream = port.dial().await;
    let ask = InfoRequest { name: "disk".to_owned(), kinds: vec![] }.encode();
    for (option, payload) in [(code::LIST, &[][..]), (code::GO, &ask), (code::STRUCTURED_REPLY, &[]), (4711, &[1])] {
        stream.write_all(&OptionHead { option, length: payload.len() as u32 }.encode()).await.unwrap();
        stream.write_all(payload).await.unwrap();
        assert_eq!(answer(&mut stream).await, 1 << 31 | 5, "TLS first, option {option}");
    }
    stream.write_all(&OptionHead { option: code::STARTTLS, length: 1 }.encode()).await.unwrap();
    stream.write_all(&[0]).await.unwrap();
    assert_eq!(answer(&mut stream).await, 1 << 31 | 3);
    stream.write_all(&OptionHead { option: code::EXPORT_NAME, length: 4 }.encode()).await.unwrap();
    stream.write_all(b"disk").await.unwrap();
    ended(&mut stream).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_slipped_in_before_tls_do_not_pass_for_protected_ones() {
    let port = Port::open(Limits::default()).await;
    let mut stream = port.dial().await;
    // In one packet: STARTTLS, and an option that an attacker in the middle would like to be heard inside.
    let mut bytes = OptionHead { option: code::STARTTLS, length: 0 }.encode().to_vec();
    bytes.extend_from_slice(&OptionHead { option: code::LIST, length: 0 }.encode());
    stream.write_all(&bytes).await.unwrap();
    ended(&mut stream).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tls_handshake_that_dawdles_is_cut_off() {
    let port = Port::open(Limits { handshake: Duration::from_millis(300), ..Limits::default() }).await;
    let mut stream = port.dial().await;
    stream.write_all(&OptionHead { option: code::STARTTLS, length: 0 }.encode()).await.unwrap();
    assert_eq!(answer(&mut stream).await, 1);
    // The first bytes of a TLS record that never ends.
    stream.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    ended(&mut stream).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_rotated_without_a_restart() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let port = Port::open(Limits::default()).await;
    let before = tempfile::tempdir().unwrap();
    for name in ["ca-cert.pem", "client-cert.pem", "client-key.pem"] {
        std::fs::copy(port.directory.path().join(name), before.path().join(name)).unwrap();
    }
    certify(port.directory.path());
    succeed("nbdinfo", &["--size", &port.uri(port.directory.path())]).await;
    assert!(!run("nbdinfo", &["--size", &port.uri(before.path())]).await.status.success(), "the old ones are no good");
    // Files that do not serve are not taken; the former go on.
    std::fs::write(port.directory.path().join("server-cert.pem"), "nothing").unwrap();
    succeed("nbdinfo", &["--size", &port.uri(port.directory.path())]).await;
}

#[tokio::test]
async fn files_that_do_not_serve_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let files = certify(directory.path());
    let missing = TlsFiles { key: directory.path().join("no-key.pem"), ..files.clone() };
    let error = NetworkListener::bind("127.0.0.1:0".parse().unwrap(), missing).await.err().unwrap();
    assert!(error.to_string().contains("no-key.pem"), "{error}");
    let other = tempfile::tempdir().unwrap();
    let mixed = TlsFiles { key: certify(other.path()).key, ..files };
    let error = NetworkListener::bind("127.0.0.1:0".parse().unwrap(), mixed).await.err().unwrap();
    assert!(matches!(error, NetworkError::Tls(_)), "{error}");
}
