//! Promises of running members: who is let in, what survives, what bad input does (nothing).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::common::{
    Member, PASSWORD, PATIENCE, admin, authority, cluster, command, login, mdm, system, system_id, text, until,
};
use mdm_api::client::pki::{self, Authority, Identity};
use mdm_api::client::token::JoinToken;
use mdm_api::client::{ClientError, ConnectError, Connector, MdmClient, Members};
use mdm_api::command::{AdminCommand, Query};
use mdm_api::control::{JoinRole, Joined, PeerRole, Request, Response};
use mdm_api::error::ErrorCode;
use mdm_api::ids::{Guid, MdmId, SdcId, SdsId, SystemId};

fn domain(name: &str) -> AdminCommand {
    AdminCommand::AddProtectionDomain { name: name.to_owned() }
}

async fn join_sdc(token: &str) -> Result<(Joined, String), ClientError> {
    let token = JoinToken::parse(token).unwrap();
    let authority_pem = pki::certificate_pem(&token.authority_der);
    let tls = pki::client_config(&authority_pem, None).unwrap();
    let members = Members::new(token.members.iter().map(|member| member.address.clone()).collect());
    let client = MdmClient::start(Connector::new(tls, PeerRole::Joiner, Some(token.system)), members, None);
    let (key_pem, csr_pem) = pki::new_request().unwrap();
    let role = JoinRole::Sdc { guid: Guid([3; 16]), name: Some("host".to_owned()) };
    match client.request(Request::Join { role, secret: token.secret, csr_pem }, PATIENCE).await? {
        Response::Joined(joined) => Ok((joined, key_pem)),
        other => panic!("{other:?}"),
    }
}

fn refusal(result: Result<mdm_api::client::Connection, ConnectError>) -> String {
    match result {
        Err(ConnectError::Refused { error, .. }) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("let in"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_is_known_is_let_in_and_only_as_what_it_is() {
    let mut member = Member::new("mdm1");
    let created = member.create();
    let id = system_id(&created);
    member.start();
    let authority_pem = authority(&member.data());
    let addresses = [member.address.clone()];
    until("the port opens", async || TcpStream::connect(&member.address).is_ok()).await;

    // People.
    let wrong = login(&authority_pem, &addresses, "a bad password").await;
    assert!(matches!(&wrong, Err(ClientError::Refused(error)) if error.code == ErrorCode::WrongPassword), "{wrong:?}");
    let client = admin(&authority_pem, &addresses).await;
    command(&client, 1, domain("d")).await.unwrap();
    let stranger = crate::common::tool(&authority_pem, addresses.to_vec(), None);
    let answer = stranger.request(Request::Query(Query::System), PATIENCE).await;
    assert!(matches!(&answer, Err(ClientError::Refused(e)) if e.code == ErrorCode::InvalidSession), "{answer:?}");

    // Hosts: by the join token, until there is a newer one.
    let token = created["join_token"].as_str().unwrap();
    let (joined, key_pem) = join_sdc(token).await.unwrap();
    let (again, _) = join_sdc(token).await.unwrap();
    assert_eq!((joined.system, joined.id), (id, again.id), "the same host is the same client");
    let Response::JoinToken { token: newer } = client.request(Request::JoinToken, PATIENCE).await.unwrap() else {
        panic!("no token")
    };
    assert!(matches!(join_sdc(token).await, Err(ClientError::Refused(e)) if e.code == ErrorCode::PermissionDenied));
    join_sdc(&newer).await.unwrap();

    // Daemons: as what their certificate says.
    let sdc = SdcId(joined.id);
    let identity =
        Identity { certificate_pem: joined.certificate_pem, key_pem, authority_pem: joined.authority_pem.clone() };
    let tls = pki::client_config(&authority_pem, Some(&identity)).unwrap();
    let connector = |role, system| Connector::new(tls.clone(), role, Some(system));
    connector(PeerRole::Sdc(sdc), id).connect(&member.address).await.unwrap();
    let words = refusal(connector(PeerRole::Sds(SdsId(1)), id).connect(&member.address).await);
    assert!(words.contains("certificate is that of Sdc"), "{words}");
    let words = refusal(connector(PeerRole::Sdc(sdc), SystemId(1)).connect(&member.address).await);
    assert!(words.contains("not the one that the caller belongs to"), "{words}");
    let words = refusal(connector(PeerRole::Sdc(sdc), id).connect(&member.peer_address).await);
    assert!(words.contains("metadata managers only"), "{words}");
    let bare = pki::client_config(&authority_pem, None).unwrap();
    let words = refusal(Connector::new(bare, PeerRole::Mdm(MdmId(1)), Some(id)).connect(&member.peer_address).await);
    assert!(words.contains("no certificate"), "{words}");

    // Another authority's certificate does not even end the handshake.
    let foreign = Authority::create(id).unwrap();
    let (key_pem, request) = pki::new_request().unwrap();
    let certificate_pem = foreign.sign(id, PeerRole::Sdc(sdc), &request).unwrap();
    let identity = Identity { certificate_pem, key_pem, authority_pem: authority_pem.clone() };
    let tls = pki::client_config(&authority_pem, Some(&identity)).unwrap();
    for address in [&member.address, &member.peer_address] {
        let result = Connector::new(tls.clone(), PeerRole::Sdc(sdc), Some(id)).connect(address).await;
        assert!(matches!(result, Err(ConnectError::Io { .. })), "another authority was trusted");
    }
    // And a client of another system does not trust this one.
    let tls = pki::client_config(&foreign.certificate_pem, None).unwrap();
    let result = Connector::new(tls, PeerRole::Tool, None).connect(&member.address).await;
    assert!(matches!(result, Err(ConnectError::Io { .. })));
    assert!(!text(&std::fs::read(member.log()).unwrap()).contains(PASSWORD), "no secrets in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_every_port_ends_that_connection_only() {
    let mut member = Member::new("mdm1");
    member.create();
    member.start();
    let authority_pem = authority(&member.data());
    let addresses = [member.address.clone()];
    let client = admin(&authority_pem, &addresses).await;
    command(&client, 1, domain("before")).await.unwrap();
    let garbage: [&[u8]; 4] =
        [b"GET / HTTP/1.1\r\n\r\n", &[0xff; 4096], b"ASHL\x01\x00\x01\x00\xff\xff\xff\xff", b"\x16\x03\x01\xff\xff"];
    for address in [&member.address, &member.peer_address, &member.metrics_address] {
        for bytes in garbage {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let _ = stream.write_all(bytes);
            // Ended by the member, by force or in good order.
            let mut rest = Vec::new();
            if let Err(error) = stream.read_to_end(&mut rest) {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{address}: {error}");
            }
        }
    }
    // Inside TLS as well.
    let tls = pki::client_config(&authority_pem, None).unwrap();
    for header in [vec![0xc1; 100], vec![0; 0]] {
        let mut connection = Connector::new(tls.clone(), PeerRole::Tool, None).connect(&member.address).await.unwrap();
        connection.writer.send_frame(mdm_api::frame::FrameKind::Control, &header).await.unwrap();
        let end = tokio::time::timeout(Duration::from_secs(10), connection.reader.next()).await.unwrap();
        assert!(!matches!(end, Ok(Some(_))), "{end:?}");
    }
    let mut connection = Connector::new(tls, PeerRole::Tool, None).connect(&member.address).await.unwrap();
    let long = vec![0; 1 << 20];
    // The member stops reading at the front of a frame that is too long.
    let sent = connection.writer.send_frame(mdm_api::frame::FrameKind::Control, &long).await;
    let end = tokio::time::timeout(Duration::from_secs(10), connection.reader.next()).await.unwrap();
    assert!(sent.is_err() || !matches!(end, Ok(Some(_))));

    command(&client, 2, domain("after")).await.unwrap();
    assert!(member.is_running());
    let view = system(&client).await;
    assert_eq!(view.protection_domains.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_shown_and_nothing_else() {
    let mut member = Member::new("mdm1");
    member.create();
    member.start();
    let get = |path: &str| {
        let mut stream = TcpStream::connect(&member.metrics_address)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: m\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    until("the member leads by its metrics", async || {
        get("/metrics").is_ok_and(|page| page.lines().any(|line| line == "ashlar_mdm_leader 1"))
    })
    .await;
    let page = get("/metrics").unwrap();
    for name in ["raft_term", "map_revision", "pgs_dark", "log_persist_seconds_bucket", "connections"] {
        assert!(page.contains(&format!("ashlar_mdm_{name}")), "{name} in {page}");
    }
    assert!(get("/").unwrap().starts_with("HTTP/1.1 404"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_survives_a_kill_and_a_stop() {
    let mut member = Member::new("mdm1");
    member.create();
    member.start();
    let authority_pem = authority(&member.data());
    let addresses = [member.address.clone()];
    let client = admin(&authority_pem, &addresses).await;
    let first = command(&client, 1, domain("one")).await.unwrap();
    member.kill();
    member.start();
    // The same client, the same session, the same request: the same answer.
    assert_eq!(command(&client, 1, domain("one")).await.unwrap(), first);
    command(&client, 2, domain("two")).await.unwrap();
    assert!(member.stop(), "SIGTERM is a clean end");
    member.start();
    let view = system(&client).await;
    assert_eq!(view.protection_domains.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    let second = mdm(&["run", "--config", &member.config()]);
    assert!(text(&second.stderr).contains("in use by another mdm"), "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_members_go_on_without_their_leader_and_take_it_back() {
    let mut members = vec![Member::new("mdm1")];
    let created = members[0].create();
    members[0].start();
    let token = created["join_token"].as_str().unwrap().to_owned();
    for name in ["mdm2", "mdm3"] {
        let mut member = Member::new(name);
        let output = mdm(&["join", "--config", &member.config(), "--token", &token, "--output", "json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        member.start();
        members.push(member);
    }
    let authority_pem = authority(&members[0].data());
    let addresses: Vec<String> = members.iter().map(|member| member.address.clone()).collect();
    let client = admin(&authority_pem, &addresses).await;
    until("all three vote", async || {
        let view = system(&client).await.cluster;
        view.members.len() == 3 && view.members.iter().all(|member| member.mdm.voter && member.connected)
    })
    .await;
    for round in 0..2_u8 {
        let leader = system(&client).await.cluster.leader.unwrap();
        let view = cluster(&client).await;
        let address = view.members.iter().find(|member| member.mdm.id == leader).unwrap().mdm.address.clone();
        let victim = members.iter_mut().find(|member| member.address == address).unwrap();
        let name = format!("round{round}");
        command(&client, u128::from(round) + 1, domain(&name)).await.unwrap();
        victim.kill();
        let begun = std::time::Instant::now();
        command(&client, u128::from(round) + 101, domain(&format!("{name}-after"))).await.unwrap();
        eprintln!("a command was answered {:?} after the leader was killed", begun.elapsed());
        victim.start();
        // Others say "connected" of it for a moment after it is gone: it is asked itself.
        let itself = admin(&authority_pem, &[address]).await;
        until("the killed member is back", async || cluster(&itself).await.leader.is_some()).await;
    }
    let view = system(&client).await;
    assert_eq!(view.protection_domains.len(), 4);
    for member in &mut members {
        assert!(member.stop());
    }
}
