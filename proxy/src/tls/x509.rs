//! The few facts of a certificate that we need ourselves: whose it is, when it ends, and the hash that binds a login to
//! it. PURE. Whether a certificate is to be trusted is the TLS library's business, not this module's.
//!
//! Source: RFC 5280, sections 4.1 and 4.1.2.5 (layout, times); RFC 5929, section 4.1 (`tls-server-end-point`).

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The first common name of its subject.
    pub common_name: Option<String>,
    /// The end of its validity, seconds since 1970.
    pub not_after: i64,
    /// The hash for `tls-server-end-point`; `None` where none is defined or it is one that we do not compute.
    pub binding_hash: Option<Hash>,
}

/// A hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256; also where the signature uses MD5 or SHA-1.
    Sha256,
    /// SHA-384
    Sha384,
    /// SHA-512
    Sha512,
}

/// Bytes that are no certificate of a form we can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed certificate: {0}")]
pub struct BadCertificate(&'static str);

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]`, constructed: the version, and the hash within the parameters of RSASSA-PSS.
const CONTEXT_0: u8 = 0xa0;

/// UTF8String, PrintableString, IA5String: what ASCII and UTF-8 names are written in.
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
/// 1.2.840.113549.1.1, the family of RSA signatures.
const PKCS1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1];
/// 1.2.840.10045.4, the family of ECDSA signatures.
const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4];
/// 2.16.840.1.101.3.4.2, the family of SHA-2.
const SHA2: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2];

/// Read a certificate in DER.
///
/// # Errors
/// It is not laid out as a certificate.
pub fn read(der: &[u8]) -> Result<Facts, BadCertificate> {
    let mut certificate = Der(Der(der).expect(SEQUENCE, "not a sequence")?);
    let mut body = Der(certificate.expect(SEQUENCE, "no body")?);
    let binding_hash = binding_hash(certificate.expect(SEQUENCE, "no signature algorithm")?);
    if body.peek() == Some(CONTEXT_0) {
        body.expect(CONTEXT_0, "no version")?;
    }
    body.expect(INTEGER, "no serial number")?;
    body.expect(SEQUENCE, "no inner signature algorithm")?;
    body.expect(SEQUENCE, "no issuer")?;
    let mut validity = Der(body.expect(SEQUENCE, "no validity")?);
    validity.next().ok_or(BadCertificate("no beginning of its validity"))?;
    let (kind, end) = validity.next().ok_or(BadCertificate("no end of its validity"))?;
    let not_after = time(kind, end).ok_or(BadCertificate("an end of its validity that is no time"))?;
    let common_name = common_name(body.expect(SEQUENCE, "no subject")?)?;
    Ok(Facts { common_name, not_after, binding_hash })
}

/// Values one after another, each with its tag and length.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (len, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            // Lengths of certificates fit three bytes by far.
            0x81..=0x83 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 3))?;
                (bytes.iter().fold(0, |len, &b| len << 8 | usize::from(b)), rest)
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some((tag, value))
    }

    fn expect(&mut self, tag: u8, else_what: &'static str) -> Result<&'a [u8], BadCertificate> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, value)| value).ok_or(BadCertificate(else_what))
    }
}

fn binding_hash(algorithm: &[u8]) -> Option<Hash> {
    let mut algorithm = Der(algorithm);
    let (_, oid) = algorithm.next().filter(|(tag, _)| *tag == OID)?;
    if let Some(rest) = oid.strip_prefix(PKCS1) {
        return match rest {
            [4 | 5] => Some(Hash::Sha256),
            [10] => pss_hash(algorithm),
            [11] => Some(Hash::Sha256),
            [12] => Some(Hash::Sha384),
            [13] => Some(Hash::Sha512),
            _ => None,
        };
    }
    match oid.strip_prefix(ECDSA)? {
        [1] | [3, 2] => Some(Hash::Sha256),
        [3, 3] => Some(Hash::Sha384),
        [3, 4] => Some(Hash::Sha512),
        _ => None,
    }
}

/// The hash that RSASSA-PSS is parametrised with; SHA-1 when it is not named.
fn pss_hash(mut parameters: Der<'_>) -> Option<Hash> {
    let Some((SEQUENCE, parameters)) = parameters.next() else { return Some(Hash::Sha256) };
    let Some((CONTEXT_0, hash)) = Der(parameters).next() else { return Some(Hash::Sha256) };
    let (_, algorithm) = Der(hash).next().filter(|(tag, _)| *tag == SEQUENCE)?;
    let (_, oid) = Der(algorithm).next().filter(|(tag, _)| *tag == OID)?;
    match oid.strip_prefix(SHA2) {
        Some([1]) => Some(Hash::Sha256),
        Some([2]) => Some(Hash::Sha384),
        Some([3]) => Some(Hash::Sha512),
        Some(_) => None,
        None => Some(Hash::Sha256).filter(|_| oid == [0x2b, 14, 3, 2, 26]),
    }
}

fn common_name(subject: &[u8]) -> Result<Option<String>, BadCertificate> {
    let mut parts = Der(subject);
    while let Some((tag, part)) = parts.next() {
        let mut pairs = Der(part);
        while let Some((SEQUENCE, pair)) = pairs.next().filter(|_| tag == SET) {
            let mut pair = Der(pair);
            if pair.next() != Some((OID, COMMON_NAME)) {
                continue;
            }
            let (kind, name) = pair.next().ok_or(BadCertificate("a common name without value"))?;
            // A NUL would let a name pass for its own beginning where strings end with one.
            if !TEXTS.contains(&kind) || name.contains(&0) {
                return Err(BadCertificate("a common name that is no plain text"));
            }
            let name = std::str::from_utf8(name).map_err(|_| BadCertificate("a common name that is not UTF-8"))?;
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

/// Seconds since 1970. Certificates write times in UTC, with seconds.
fn time(kind: u8, text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let number = |s: &str| s.bytes().all(|b| b.is_ascii_digit()).then(|| s.parse::<i64>().ok()).flatten();
    let (year, rest) = match kind {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let year = number(year)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (number(year)?, rest)
        }
        _ => return None,
    };
    if rest.len() != 10 {
        return None;
    }
    let part = |i: usize| number(rest.get(i..i + 2)?);
    let (month, day) = (part(0)?, part(2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    Some(days(year, month, day) * 86_400 + part(4)? * 3600 + part(6)? * 60 + part(8)?)
}

/// Days since 1970-01-01 in the Gregorian calendar. Years are counted from March, so that the leap day ends them.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    // 719,468 days lie between 0000-03-01 and 1970-01-01.
    365 * year + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};

    fn certificate(algorithm: &'static rcgen::SignatureAlgorithm, names: &[&str]) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let mut params = CertificateParams::new(vec!["db.example".to_owned()]).expect("parameters");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "somebody");
        for name in names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        params.not_after = date_time_ymd(2031, 3, 1);
        params.self_signed(&key).expect("a certificate").der().to_vec()
    }

    #[test]
    fn the_facts_of_a_certificate_are_read() {
        for (algorithm, hash) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, Some(Hash::Sha256)),
            (&rcgen::PKCS_ECDSA_P384_SHA384, Some(Hash::Sha384)),
            (&rcgen::PKCS_ED25519, None),
        ] {
            let facts = read(&certificate(algorithm, &["ann"])).unwrap();
            // 2031-03-01 00:00:00 UTC.
            let want = Facts { common_name: Some("ann".into()), not_after: 1_930_089_600, binding_hash: hash };
            assert_eq!(facts, want);
        }
        assert_eq!(read(&certificate(&rcgen::PKCS_ED25519, &[])).unwrap().common_name, None);
    }

    #[test]
    fn times_of_both_forms_are_counted_from_1970() {
        for (kind, text, want) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (UTC_TIME, "500101000000Z", Some(-631_152_000)),
            (GENERALIZED_TIME, "20240229120000Z", Some(1_709_208_000)),
            (GENERALIZED_TIME, "20241301000000Z", None),
            (GENERALIZED_TIME, "2024022912000Z", None),
            (UTC_TIME, "+00101000000Z", None),
            (UTC_TIME, "700101000000", None),
            (SEQUENCE, "700101000000Z", None),
        ] {
            assert_eq!(time(kind, text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn a_common_name_with_a_nul_is_refused() {
        let refused = read(&certificate(&rcgen::PKCS_ED25519, &["ann\0.evil"]));
        assert_eq!(refused, Err(BadCertificate("a common name that is no plain text")));
    }

    #[test]
    fn rsa_signatures_name_their_hash() {
        let algorithm = |last: u8, rest: &[u8]| [&[OID, 9], PKCS1, &[last], rest].concat();
        let pss = |sha2: u8| {
            let oid = [&[OID, 9], SHA2, &[sha2]].concat();
            let sequence = [&[SEQUENCE, 11], &oid[..]].concat();
            let hash = [&[CONTEXT_0, 13], &sequence[..]].concat();
            algorithm(10, &[&[SEQUENCE, 15], &hash[..]].concat())
        };
        for (bytes, want) in [
            (algorithm(5, &[5, 0]), Some(Hash::Sha256)),
            (algorithm(11, &[5, 0]), Some(Hash::Sha256)),
            (algorithm(12, &[5, 0]), Some(Hash::Sha384)),
            (algorithm(13, &[5, 0]), Some(Hash::Sha512)),
            (algorithm(14, &[5, 0]), None),
            (algorithm(10, &[SEQUENCE, 0]), Some(Hash::Sha256)),
            (pss(2), Some(Hash::Sha384)),
            (pss(4), None),
        ] {
            assert_eq!(binding_hash(&bytes), want, "{bytes:?}");
        }
    }

    #[test]
    fn no_cut_and_no_changed_byte_makes_it_panic() {
        let whole = certificate(&rcgen::PKCS_ECDSA_P256_SHA256, &["ann"]);
        for at in 0..whole.len() {
            let _ = read(&whole[..at]);
            for byte in [0, 0x7f, 0x80, 0x83, 0xff] {
                let mut changed = whole.clone();
                changed[at] = byte;
                let _ = read(&changed);
            }
        }
    }
}
