//! The system's certificate authority, and who a certificate says its holder is.
//!
//! Every certificate carries two alternative names: a DNS name for its role (`mdm.ashlar`, ..), which the other side's TLS
//! library verifies like any host name, and a URI `ashlar://<system>/<role>/<id>`, which the greeting is checked against.
//! Addresses play no part: a daemon that moves keeps its certificate.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::control::PeerRole;
use crate::ids::{MdmId, SdcId, SdsId, SystemId};

/// Why a certificate could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Making or signing failed.
    #[error("certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// TLS refuses it.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// Not readable as PEM.
    #[error("not a PEM file with what is expected in it: {0}")]
    Pem(String),
    /// The roots do not make a verifier.
    #[error("certificate authority: {0}")]
    Verifier(String),
}

/// The authority: kept in the metadata manager's replicated state.
pub struct Authority {
    /// Its certificate.
    pub certificate_pem: String,
    /// Its key. A secret.
    pub key_pem: String,
}

/// What a daemon holds: its key, its certificate, its authority.
#[derive(Clone)]
pub struct Identity {
    /// Certificate.
    pub certificate_pem: String,
    /// Key. A secret.
    pub key_pem: String,
    /// The authority's certificate.
    pub authority_pem: String,
}

/// A new key and a request for its certificate. What the request asks for does not matter: the authority decides the names.
pub fn new_request() -> Result<(String, String), PkiError> {
    let key = KeyPair::generate()?;
    let request = CertificateParams::default().serialize_request(&key)?;
    Ok((key.serialize_pem(), request.pem()?))
}

impl Authority {
    /// Makes the authority of a new system.
    pub fn create(system: SystemId) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("Ashlar system {system}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Ok(Self { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// Signs a request for a role.
    pub fn sign(&self, system: SystemId, role: PeerRole, request_pem: &str) -> Result<String, PkiError> {
        let issuer = Issuer::from_ca_cert_pem(&self.certificate_pem, KeyPair::from_pem(&self.key_pem)?)?;
        let mut request = CertificateSigningRequestParams::from_pem(request_pem)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, role_uri(system, role));
        params.subject_alt_names = vec![
            SanType::DnsName(role_dns(role).try_into()?),
            SanType::URI(role_uri(system, role).as_str().try_into()?),
        ];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        request.params = params;
        Ok(request.signed_by(&issuer)?.pem())
    }
}

/// The DNS name in a role's certificates.
pub const fn role_dns(role: PeerRole) -> &'static str {
    match role {
        PeerRole::Mdm(_) => "mdm.ashlar",
        PeerRole::Sds(_) => "sds.ashlar",
        PeerRole::Sdc(_) => "sdc.ashlar",
        PeerRole::Tool => "tool.ashlar",
        PeerRole::Joiner => "joiner.ashlar",
    }
}

fn role_uri(system: SystemId, role: PeerRole) -> String {
    match role {
        PeerRole::Mdm(id) => format!("ashlar://{system}/mdm/{id}"),
        PeerRole::Sds(id) => format!("ashlar://{system}/sds/{id}"),
        PeerRole::Sdc(id) => format!("ashlar://{system}/sdc/{id}"),
        PeerRole::Tool => format!("ashlar://{system}/tool/"),
        PeerRole::Joiner => format!("ashlar://{system}/joiner/"),
    }
}

/// Who a verified certificate says its holder is.
pub fn certified(certificate: &CertificateDer<'_>) -> Option<(SystemId, PeerRole)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        x509_parser::extensions::GeneralName::URI(uri) => parse_uri(uri),
        _ => None,
    })
}

fn parse_uri(uri: &str) -> Option<(SystemId, PeerRole)> {
    let mut parts = uri.strip_prefix("ashlar://")?.split('/');
    let system = parts.next()?.parse().ok()?;
    let (role, id) = (parts.next()?, parts.next()?);
    let role = match role {
        "mdm" => PeerRole::Mdm(id.parse::<MdmId>().ok()?),
        "sds" => PeerRole::Sds(id.parse::<SdsId>().ok()?),
        "sdc" => PeerRole::Sdc(id.parse::<SdcId>().ok()?),
        _ => return None,
    };
    parts.next().is_none().then_some((system, role))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|e| PkiError::Pem(e.to_string()))
}

fn roots(authority_pem: &str) -> Result<RootCertStore, PkiError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(authority_pem)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// TLS for a side that calls. Without an identity the other side sees a tool or a joiner.
pub fn client_config(authority_pem: &str, identity: Option<&Identity>) -> Result<Arc<ClientConfig>, PkiError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(authority_pem)?);
    Ok(Arc::new(match identity {
        Some(identity) => builder.with_client_auth_cert(certificates(&identity.certificate_pem)?, key(identity)?)?,
        None => builder.with_no_client_auth(),
    }))
}

/// TLS for a side that is called. A caller may have no certificate (a tool, a joiner); one that it has must be of this
/// authority. What a caller without one may ask is up to the greeting.
pub fn server_config(identity: &Identity) -> Result<Arc<ServerConfig>, PkiError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&identity.authority_pem)?), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| PkiError::Verifier(error.to_string()))?;
    Ok(Arc::new(
        ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates(&identity.certificate_pem)?, key(identity)?)?,
    ))
}

fn key(identity: &Identity) -> Result<PrivateKeyDer<'static>, PkiError> {
    PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(|e| PkiError::Pem(e.to_string()))
}

/// The DER bytes of the first certificate in a PEM text.
pub fn certificate_der(pem: &str) -> Result<Vec<u8>, PkiError> {
    certificates(pem)?.into_iter().next().map(|c| c.to_vec()).ok_or_else(|| PkiError::Pem("no certificate".to_owned()))
}

/// A PEM text of a certificate's DER bytes.
pub fn certificate_pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signed_certificate_says_who_its_holder_is() {
        let system = SystemId(0xabc);
        let authority = Authority::create(system).unwrap();
        let (key_pem, request) = new_request().unwrap();
        let certificate_pem = authority.sign(system, PeerRole::Sds(SdsId(7)), &request).unwrap();
        let der = certificates(&certificate_pem).unwrap();
        assert_eq!(certified(&der[0]), Some((system, PeerRole::Sds(SdsId(7)))));
        let identity = Identity { certificate_pem, key_pem, authority_pem: authority.certificate_pem.clone() };
        server_config(&identity).unwrap();
        client_config(&authority.certificate_pem, Some(&identity)).unwrap();
        let der = certificate_der(&authority.certificate_pem).unwrap();
        assert_eq!(certificate_der(&super::certificate_pem(&der)).unwrap(), der);
    }
}
