//! One handshake: fixed newstyle, from the greeting to the chosen export.
//!
//! Every option gets an answer, unknown ones too; malformed ones get an error and the talk goes on, as the protocol
//! asks. What loses the place in the stream, and what is too long to read away, ends the connection. The number of
//! options is bounded here, their time by the caller.
//!
//! Where TLS is required ([`Security::Required`]) nothing is given away before it: whatever is asked is answered with "TLS
//! first", and after STARTTLS everything begins anew inside, because nothing agreed before may survive it. A unix socket
//! has no TLS: whoever may open it is trusted by the file's permissions, and STARTTLS is answered with "policy".

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::export::{Export, Exports};
use crate::limits::{MAX_DISCARDED_OPTION, MAX_NAME, MAX_OPTION, MAX_OPTION_COUNT};
use crate::source::Source;
use crate::wire::option::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, FIXED_NEWSTYLE, InfoRequest, MetaRequest, NO_ZEROES, OptionHead, code,
    greeting, info, info_block_size, info_export, name, push_reply, reply,
};
use crate::wire::{Headers, flags};

/// What the two sides agreed on.
#[derive(Debug)]
pub(crate) struct Agreed<E> {
    pub(crate) export: Arc<E>,
    pub(crate) name: String,
    pub(crate) headers: Headers,
    pub(crate) allocation: bool,
}

/// What protects the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Security {
    /// The permissions of a unix socket.
    Local,
    /// Nothing yet: TLS must come first.
    Required,
    /// TLS, with a client whose certificate was verified.
    Established,
}

/// How the talk about options ended.
#[derive(Debug)]
pub(crate) enum Outcome<E> {
    /// An export is chosen.
    Agreed(Agreed<E>),
    /// The client said good-bye.
    Left,
    /// The client was told to begin TLS.
    StartTls,
}

/// Why a handshake ended without an export.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The socket failed or closed.
    #[error("the connection ended in the handshake: {0}")]
    Io(#[from] io::Error),
    /// Bytes that are not the protocol.
    #[error("the peer does not speak NBD: {0}")]
    Garbage(&'static str),
    /// EXPORT_NAME of something that is not there; the option has no error reply.
    #[error("no export is called {0:?}")]
    UnknownExport(String),
    /// More options than any client needs.
    #[error("more than {MAX_OPTION_COUNT} options")]
    TooManyOptions,
    /// EXPORT_NAME before TLS, where TLS is required.
    #[error("the client does not begin TLS")]
    TlsRequired,
    /// TLS itself failed: no certificate, or none of ours.
    #[error("no TLS with the client: {0}")]
    Tls(io::Error),
}

/// What an export offers, as transmission flags.
pub fn transmission_flags<E: Export>(export: &E, headers: Headers) -> u16 {
    let mut offered = flags::HAS_FLAGS | flags::FLUSH | flags::FUA | flags::CAN_MULTI_CONN | flags::CACHE;
    offered |= if export.read_only() { flags::READ_ONLY } else { flags::TRIM | flags::WRITE_ZEROES | flags::FAST_ZERO };
    if headers >= Headers::Structured {
        offered |= flags::DF;
    }
    offered
}

/// Greets. What the client's flags say of zeroes after EXPORT_NAME; they hold inside TLS too.
pub(crate) async fn greet<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    source: &mut Source<R>,
    writer: &mut W,
) -> Result<bool, HandshakeError> {
    writer.write_all(&greeting()).await?;
    let mut client_flags = [0; 4];
    source.read_exact(&mut client_flags).await?;
    let client_flags = u32::from_be_bytes(client_flags);
    if client_flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
        return Err(HandshakeError::Garbage("unknown client flags"));
    }
    Ok(client_flags & u32::from(NO_ZEROES) != 0)
}

/// Talks until an export is chosen, TLS begins, or the client leaves.
pub(crate) async fn negotiate<X: Exports, R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    exports: &X,
    source: &mut Source<R>,
    writer: &mut W,
    security: Security,
    no_zeroes: bool,
) -> Result<Outcome<X::Export>, HandshakeError> {
    let mut talk = Talk { exports, security, headers: Headers::Simple, allocation_for: None, out: Vec::new() };
    for _ in 0..MAX_OPTION_COUNT {
        let mut head = [0; 16];
        source.read_exact(&mut head).await?;
        let head = OptionHead::decode(&head).ok_or(HandshakeError::Garbage("no option where one was due"))?;
        talk.out.clear();
        if head.length > MAX_OPTION {
            if head.length > MAX_DISCARDED_OPTION {
                return Err(HandshakeError::Garbage("an option of absurd length"));
            }
            source.discard(u64::from(head.length)).await?;
            push_reply(&mut talk.out, head.option, reply::ERR_TOO_BIG, b"option too long");
            writer.write_all(&talk.out).await?;
            continue;
        }
        let mut payload = vec![0; head.length as usize];
        source.read_exact(&mut payload).await?;
        let next = talk.option(head.option, &payload, no_zeroes).await?;
        writer.write_all(&talk.out).await?;
        writer.flush().await?;
        match next {
            Next::Option => {}
            Next::Start(agreed) => return Ok(Outcome::Agreed(agreed)),
            Next::StartTls => return Ok(Outcome::StartTls),
            Next::Close => return Ok(Outcome::Left),
        }
    }
    Err(HandshakeError::TooManyOptions)
}

enum Next<E> {
    Option,
    Start(Agreed<E>),
    StartTls,
    Close,
}

struct Talk<'a, X> {
    exports: &'a X,
    security: Security,
    headers: Headers,
    /// The export for which `base:allocation` was chosen; another export does not inherit it.
    allocation_for: Option<String>,
    out: Vec<u8>,
}

impl<X: Exports> Talk<'_, X> {
    async fn option(
        &mut self,
        option: u32,
        payload: &[u8],
        no_zeroes: bool,
    ) -> Result<Next<X::Export>, HandshakeError> {
        match option {
            code::STARTTLS => return Ok(self.start_tls(payload)),
            code::EXPORT_NAME if self.security == Security::Required => return Err(HandshakeError::TlsRequired),
            code::EXPORT_NAME => return self.export_name(payload, no_zeroes).await,
            code::ABORT => {
                self.reply(option, reply::ACK, &[]);
                return Ok(Next::Close);
            }
            _ if self.security == Security::Required => self.reply(option, reply::ERR_TLS_REQD, b"TLS comes first"),
            code::GO | code::INFO => return Ok(self.info(option, payload).await),
            code::LIST => self.list(payload).await,
            code::STRUCTURED_REPLY if payload.is_empty() && self.headers < Headers::Extended => {
                self.headers = Headers::Structured;
                self.reply(option, reply::ACK, &[]);
            }
            code::EXTENDED_HEADERS if payload.is_empty() && self.headers < Headers::Extended => {
                self.headers = Headers::Extended;
                self.reply(option, reply::ACK, &[]);
            }
            code::STRUCTURED_REPLY | code::EXTENDED_HEADERS => {
                self.reply(option, reply::ERR_INVALID, b"has no data, and is not asked for again");
            }
            code::LIST_META_CONTEXT | code::SET_META_CONTEXT => self.meta_context(option, payload).await,
            _ => self.reply(option, reply::ERR_UNSUP, b"unknown option"),
        }
        Ok(Next::Option)
    }

    fn reply(&mut self, option: u32, kind: u32, payload: &[u8]) {
        push_reply(&mut self.out, option, kind, payload);
    }

    fn start_tls(&mut self, payload: &[u8]) -> Next<X::Export> {
        match self.security {
            Security::Required if payload.is_empty() => {
                self.reply(code::STARTTLS, reply::ACK, &[]);
                return Next::StartTls;
            }
            Security::Required => self.reply(code::STARTTLS, reply::ERR_INVALID, b"STARTTLS has no data"),
            Security::Local => self.reply(code::STARTTLS, reply::ERR_POLICY, b"a unix socket has no TLS"),
            Security::Established => self.reply(code::STARTTLS, reply::ERR_INVALID, b"TLS has begun already"),
        }
        Next::Option
    }

    fn agreed(&self, name: String, export: Arc<X::Export>) -> Next<X::Export> {
        let allocation = self.allocation_for.as_deref() == Some(&name);
        Next::Start(Agreed { export, name, headers: self.headers, allocation })
    }

    async fn export_name(&mut self, payload: &[u8], no_zeroes: bool) -> Result<Next<X::Export>, HandshakeError> {
        let name = name(payload).ok_or(HandshakeError::Garbage("a malformed export name"))?;
        let Some(export) = self.exports.open(&name).await else { return Err(HandshakeError::UnknownExport(name)) };
        self.out.extend_from_slice(&export.size_bytes().to_be_bytes());
        self.out.extend_from_slice(&transmission_flags(&*export, self.headers).to_be_bytes());
        if !no_zeroes {
            self.out.extend_from_slice(&[0; 124]);
        }
        Ok(self.agreed(name, export))
    }

    async fn info(&mut self, option: u32, payload: &[u8]) -> Next<X::Export> {
        let Some(request) = InfoRequest::decode(payload) else {
            self.reply(option, reply::ERR_INVALID, b"malformed request");
            return Next::Option;
        };
        let Some(export) = self.exports.open(&request.name).await else {
            self.reply(option, reply::ERR_UNKNOWN, b"no such export");
            return Next::Option;
        };
        let offered = transmission_flags(&*export, self.headers);
        self.reply(option, reply::INFO, &info_export(export.size_bytes(), offered));
        if request.kinds.contains(&info::NAME) {
            let mut payload = info::NAME.to_be_bytes().to_vec();
            payload.extend_from_slice(request.name.as_bytes());
            self.reply(option, reply::INFO, &payload);
        }
        if request.kinds.contains(&info::BLOCK_SIZE) {
            self.reply(option, reply::INFO, &info_block_size());
        }
        self.reply(option, reply::ACK, &[]);
        if option == code::GO { self.agreed(request.name, export) } else { Next::Option }
    }

    async fn list(&mut self, payload: &[u8]) {
        if !payload.is_empty() {
            return self.reply(code::LIST, reply::ERR_INVALID, b"LIST has no data");
        }
        for name in self.exports.list().await {
            if name.len() > MAX_NAME {
                continue;
            }
            let mut entry = u32::try_from(name.len()).expect("at most 4096").to_be_bytes().to_vec();
            entry.extend_from_slice(name.as_bytes());
            self.reply(code::LIST, reply::SERVER, &entry);
        }
        self.reply(code::LIST, reply::ACK, &[]);
    }

    async fn meta_context(&mut self, option: u32, payload: &[u8]) {
        let set = option == code::SET_META_CONTEXT;
        if set {
            // Whatever this request comes to, it replaces what was chosen before.
            self.allocation_for = None;
        }
        if self.headers < Headers::Structured {
            return self.reply(option, reply::ERR_INVALID, b"structured replies come first");
        }
        let Some(request) = MetaRequest::decode(payload) else {
            return self.reply(option, reply::ERR_INVALID, b"malformed request");
        };
        if self.exports.open(&request.name).await.is_none() {
            return self.reply(option, reply::ERR_UNKNOWN, b"no such export");
        }
        if if set { request.sets_allocation() } else { request.lists_allocation() } {
            let id = if set { BASE_ALLOCATION_ID } else { 0 };
            let mut context = id.to_be_bytes().to_vec();
            context.extend_from_slice(BASE_ALLOCATION.as_bytes());
            self.reply(option, reply::META_CONTEXT, &context);
            if set {
                self.allocation_for = Some(request.name);
            }
        }
        self.reply(option, reply::ACK, &[]);
    }
}
