//! JWT-SVIDs. Times are far apart, so that also a verifier that only knows today's date gives the
//! answers of 2030; the few that turn on a second say so by `at`.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::token_draft::{TokenKey, base64url};
use super::{Kind, Vector, ids};

/// 2030-01-01, 2100-01-01 and 2020-01-01.
const AT: &str = "2030-01-01T00:00:00Z";
const NOW: i64 = 1_893_456_000;
const LATER: i64 = 4_102_444_800;
const PAST: i64 = 1_577_836_800;

const AUDIENCE: &str = "spiffe://corp.example/db";
const WORKLOAD: &str = "spiffe://corp.example/ns/pay/sa/api";
const ALGORITHMS: [&str; 9] =
    ["ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512"];

const ALG: &str = "JWT-SVID §2.1: alg is one of the nine";
const KEY_ALG: &str = "RFC 7515 §10.1, JWT-SVID §2.1: alg fits the key";
const HEADER: &str = "JWT-SVID §2: no other header parameter";
const KID: &str = "Doorward: kid is required (JWT-SVID §2.2 calls it optional)";
const KID_KNOWN: &str = "JWT-SVID §6.2: the key is one of the trust domain's jwt-svid keys";
const TYP: &str = "JWT-SVID §2.3: typ is absent, JWT or JOSE";
const SUB: &str = "JWT-SVID §3.1: sub is a SPIFFE ID";
const AUD: &str = "JWT-SVID §3.2: aud holds the validator's own value";
const AUD_FORM: &str = "JWT-SVID §3.2, RFC 7519 §4.1.3: aud is one text or an array of one or more";
const EXP: &str = "JWT-SVID §3.3, RFC 7519 §4.1.4: exp is a time after now";
const NBF: &str = "RFC 7519 §4.1.5: nbf is a time, and has come";
const IAT: &str = "RFC 7519 §4.1.6: iat is a time";
const IAT_AHEAD: &str = "Doorward: iat is at most 60 s ahead";
const COMPACT: &str = "JWT-SVID §5.1: JWS compact serialisation";
const BASE64: &str = "RFC 7515 §2: base64url without padding or other characters";
const CANONICAL: &str = "Doorward: one text for the same octets (RFC 4648 §3.5)";
const SIGNATURE: &str = "JWT-SVID §4: the signature verifies";
const DOMAIN: &str = "JWT-SVID §6, SPIFFE-ID §3.1: only the bundle of sub's trust domain counts";
const REVOKED: &str = "SPIFFE Bundle §4.1.3: a domain without keys is trusted by nobody";
const OBJECT: &str = "RFC 7519 §7.2: header and claims are JSON objects";
const TWICE: &str = "Doorward: claim names are unique (RFC 7519 §4 lets the last one count)";
const TWICE_HEADER: &str =
    "Doorward: header names are unique (RFC 7515 §4 lets the last one count)";
const STRENGTH: &str = "RFC 7518 §3.3: RSA keys have at least 2048 bits";
const META: &str = "RFC 7517 §4.3, §4.4: alg and key_ops say what a key may do";
const PRIVATE: &str = "Doorward: a key whose private half was published is ignored";
const BOUNDS: &str = "Doorward: at most 16 KiB, 8 levels and 32 audiences";

struct Made {
    keys: Vec<TokenKey>,
    partner: TokenKey,
    stranger: TokenKey,
    vectors: Vec<Vector>,
}

impl Made {
    fn key(&self, kid: &str) -> &TokenKey {
        self.keys.iter().find(|key| key.kid == kid).unwrap()
    }

    fn add(&mut self, name: &str, rule: &str, token: String, reason: Option<&str>) -> &mut Vector {
        let mut vector = Vector::new(Kind::JwtSvid, name, rule, json!(token));
        if let Some(reason) = reason {
            vector = vector.refused(reason);
        }
        vector.at = Some(AT.to_owned());
        vector.trust = Some("trust/jwt.json".into());
        vector.audience = Some(AUDIENCE.into());
        self.vectors.push(vector);
        self.vectors.last_mut().unwrap()
    }

    /// The good token with other claims.
    fn claims(&mut self, name: &str, rule: &str, claims: &Value, reason: Option<&str>) {
        let token = self.signed(&claims.to_string());
        self.add(name, rule, token, reason);
    }

    /// The good token with one claim changed.
    fn claim(&mut self, name: &str, rule: &str, claim: (&str, Value), reason: Option<&str>) {
        let mut claims = claims();
        claims[claim.0] = claim.1;
        self.claims(name, rule, &claims, reason);
    }

    /// The good token with another header.
    fn header(&mut self, name: &str, rule: &str, header: &str, reason: Option<&str>) {
        let token = self.key("es256").sign("ES256", header, &claims().to_string());
        self.add(name, rule, token, reason);
    }

    fn signed(&self, claims: &str) -> String {
        let key = self.key("es256");
        key.sign("ES256", &key.header("ES256"), claims)
    }
}

fn claims() -> Value {
    json!({ "sub": WORKLOAD, "aud": [AUDIENCE], "exp": LATER, "iat": PAST, "team": "pay" })
}

/// All of them, and the map of the bundles that they are judged under.
pub fn all() -> (Vec<Vector>, Vec<u8>) {
    let mut made = Made {
        keys: keys(),
        partner: TokenKey::new("es256", "ES256"),
        stranger: TokenKey::new("es256", "ES256"),
        vectors: Vec::new(),
    };
    algorithms(&mut made);
    headers(&mut made);
    forms(&mut made);
    signatures(&mut made);
    subjects(&mut made);
    audiences(&mut made);
    times(&mut made);
    odd_keys(&mut made);
    let map = trust(&made);
    (made.vectors, map.to_string().into_bytes())
}

/// A key for each algorithm, and keys with a restriction or a fault.
fn keys() -> Vec<TokenKey> {
    let odd =
        [("only-rs512", "RS512"), ("encrypt", "ES256"), ("leaked", "ES256"), ("sig", "ES256")];
    let good = ALGORITHMS.map(|word| TokenKey::new(&word.to_lowercase(), word));
    good.into_iter().chain(odd.map(|(kid, word)| TokenKey::new(kid, word))).collect()
}

fn trust(made: &Made) -> Value {
    let mut keys: Vec<Value> = made.keys.iter().map(TokenKey::jwk).collect();
    for key in &mut keys {
        match key["kid"].as_str().unwrap() {
            "only-rs512" => key["alg"] = json!("RS512"),
            "encrypt" => key["key_ops"] = json!(["encrypt"]),
            "leaked" => key["d"] = json!(base64url([7; 32])),
            "sig" => key["use"] = json!("sig"),
            _ => {}
        }
    }
    let n = base64url([0xff; 128]);
    keys.push(json!({ "kty": "RSA", "n": n, "e": "AQAB", "kid": "weak", "use": "jwt-svid" }));
    json!({ "trust_domains": {
        "corp.example": { "keys": keys },
        "partner.example": { "keys": [made.partner.jwk()] },
        "revoked.example": { "keys": [] },
    } })
}

fn algorithms(made: &mut Made) {
    let claims = claims().to_string();
    for word in ALGORITHMS {
        let key = made.key(&word.to_lowercase());
        let token = key.sign(word, &key.header(word), &claims);
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let cut = format!("{signed}.{}", base64url(&signature[..signature.len() - 1]));
        made.add(&format!("signed by {word}"), ALG, token, None);
        let name = format!("signed by {word}, and cut short");
        made.add(&name, SIGNATURE, cut, Some("signature"));
    }
    for (alg, kid) in [
        ("ES256", "es384"),
        ("ES384", "es256"),
        ("ES512", "es384"),
        ("RS256", "es256"),
        ("ES256", "rs256"),
    ] {
        let key = made.key(kid);
        let token = key.sign(alg, &key.header(alg), &claims);
        made.add(&format!("{alg} with the key {kid}"), KEY_ALG, token, Some("key_mismatch"));
    }
    for (alg, by) in [("PS256", "RS256"), ("RS256", "PS256"), ("RS256", "RS512")] {
        let key = made.key("rs256");
        let token = key.sign(by, &key.header(alg), &claims);
        made.add(&format!("named {alg}, signed by {by}"), SIGNATURE, token, Some("signature"));
    }
    let mac_key = hmac::Key::new(hmac::HMAC_SHA256, made.key("es256").point());
    let header = made.key("es256").header("HS256");
    let signed = format!("{}.{}", base64url(header), base64url(&claims));
    let token = format!("{signed}.{}", base64url(hmac::sign(&mac_key, signed.as_bytes())));
    made.add("a MAC under the public key", ALG, token, Some("algorithm"));
    for alg in ["none", "None", "EdDSA", "Ed25519", "ES256K", "es256", "ML-DSA-44", ""] {
        let header = made.key("es256").header(alg);
        made.header(&format!("alg {alg:?}"), ALG, &header, Some("algorithm"));
    }
    let header = made.key("es256").header("none");
    let unsigned = format!("{}.{}.", base64url(header), base64url(&claims));
    made.add("no signature and alg none", ALG, unsigned, Some("algorithm"));
}

fn headers(made: &mut Made) {
    for (name, rule, header) in [
        ("no typ", TYP, r#"{"alg":"ES256","kid":"es256"}"#),
        ("typ JOSE", TYP, r#"{"alg":"ES256","kid":"es256","typ":"JOSE"}"#),
        ("space in the header", OBJECT, "{ \"kid\": \"es256\",\n \"alg\": \"ES256\" }"),
    ] {
        made.header(name, rule, header, None);
    }
    let long = format!(r#"{{"alg":"ES256","kid":"{}"}}"#, "k".repeat(257));
    for (name, rule, header, reason) in [
        ("no alg", ALG, r#"{"kid":"es256"}"#, "algorithm"),
        ("an alg that is a list", ALG, r#"{"alg":["ES256"],"kid":"es256"}"#, "algorithm"),
        ("no kid", KID, r#"{"alg":"ES256","typ":"JWT"}"#, "key_id"),
        ("an empty kid", KID, r#"{"alg":"ES256","kid":""}"#, "key_id"),
        ("a kid that is a number", KID, r#"{"alg":"ES256","kid":7}"#, "key_id"),
        ("a kid of 257 bytes", KID, &long, "key_id"),
        ("an unknown kid", KID_KNOWN, r#"{"alg":"ES256","kid":"es257"}"#, "unknown_key"),
        ("a kid in capitals", KID_KNOWN, r#"{"alg":"ES256","kid":"ES256"}"#, "unknown_key"),
        ("typ in lower case", TYP, r#"{"alg":"ES256","kid":"es256","typ":"jwt"}"#, "type"),
        ("typ of a WIT-SVID", TYP, r#"{"alg":"ES256","kid":"es256","typ":"wit+jwt"}"#, "type"),
        ("typ of an access token", TYP, r#"{"alg":"ES256","kid":"es256","typ":"at+jwt"}"#, "type"),
        ("typ that is null", TYP, r#"{"alg":"ES256","kid":"es256","typ":null}"#, "type"),
        ("cty", HEADER, r#"{"alg":"ES256","kid":"es256","cty":"JWT"}"#, "header_parameter"),
        ("crit", HEADER, r#"{"alg":"ES256","kid":"es256","crit":["exp"]}"#, "header_parameter"),
        ("b64", HEADER, r#"{"alg":"ES256","kid":"es256","b64":false}"#, "header_parameter"),
        (
            "a key in the header",
            HEADER,
            r#"{"alg":"ES256","kid":"es256","jwk":{}}"#,
            "header_parameter",
        ),
        ("jku", HEADER, r#"{"alg":"ES256","kid":"es256","jku":"https://a/"}"#, "header_parameter"),
        ("x5c", HEADER, r#"{"alg":"ES256","kid":"es256","x5c":[]}"#, "header_parameter"),
        (
            "a private parameter",
            HEADER,
            r#"{"alg":"ES256","kid":"es256","a":1}"#,
            "header_parameter",
        ),
        ("alg twice", TWICE_HEADER, r#"{"alg":"none","alg":"ES256","kid":"es256"}"#, "header"),
        ("a list as header", OBJECT, r#"["ES256","es256"]"#, "header"),
        ("no JSON as header", OBJECT, "ES256", "header"),
        ("more behind the header", OBJECT, r#"{"alg":"ES256","kid":"es256"}{}"#, "header"),
        ("a byte order mark", OBJECT, "\u{feff}{\"alg\":\"ES256\",\"kid\":\"es256\"}", "header"),
    ] {
        made.header(name, rule, header, Some(reason));
    }
}

fn forms(made: &mut Made) {
    let good = made.signed(&claims().to_string());
    let parts: Vec<&str> = good.split('.').collect();
    let general = json!({ "payload": parts[1], "signatures": [
        { "protected": parts[0], "signature": parts[2] }
    ] });
    // The last character of 86 holds four bits that are not used.
    let last = good.chars().next_back().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let next = alphabet.chars().nth(alphabet.find(last).unwrap() + 1).unwrap();
    let trailing = format!("{}{next}", &good[..good.len() - 1]);
    for (name, rule, token) in [
        ("no text", COMPACT, String::new()),
        ("two dots", COMPACT, "..".to_owned()),
        ("two parts", COMPACT, format!("{}.{}", parts[0], parts[1])),
        ("four parts", COMPACT, format!("{good}.{}", parts[2])),
        ("the JSON serialisation", COMPACT, general.to_string()),
        ("a scheme before it", COMPACT, format!("Bearer {good}")),
        ("a line feed behind it", BASE64, format!("{good}\n")),
        ("a space before it", BASE64, format!(" {good}")),
        ("padding", BASE64, format!("{good}==")),
        ("plain base64", BASE64, format!("{}.{}.{}+/", parts[0], parts[1], &parts[2][2..])),
        ("bits behind the signature", CANONICAL, trailing),
    ] {
        let reason = if matches!(name, "two dots") { "header" } else { "compact" };
        made.add(name, rule, token, Some(reason));
    }
    let detached = format!("{}..{}", parts[0], parts[2]);
    made.add("detached claims", COMPACT, detached, Some("claims"));
    for (name, rule, text) in [
        ("a list as claims", OBJECT, "[]".to_owned()),
        ("no JSON as claims", OBJECT, "sub".to_owned()),
        (
            "sub twice",
            TWICE,
            claims().to_string().replacen('{', &format!(r#"{{"sub":"{WORKLOAD}","#), 1),
        ),
        (
            "a private claim twice",
            TWICE,
            claims().to_string().replacen('{', r#"{"team":"sre","#, 1),
        ),
        ("claims nine levels deep", BOUNDS, {
            let mut claims = claims();
            claims["team"] =
                serde_json::from_str(&format!("{}{}", "[".repeat(8), "]".repeat(8))).unwrap();
            claims.to_string()
        }),
    ] {
        let token = made.signed(&text);
        made.add(name, rule, token, Some("claims"));
    }
    let mut large = claims();
    large["team"] = json!("p".repeat(13 * 1024));
    made.claims("over 16 KiB", BOUNDS, &large, Some("too_large"));
}

fn signatures(made: &mut Made) {
    let text = claims().to_string();
    let key = made.key("es256");
    let header = key.header("ES256");
    let signed = format!("{}.{}", base64url(&header), base64url(&text));
    let signature = key.sign_bytes("ES256", signed.as_bytes());
    let with = |octets: &[u8]| format!("{signed}.{}", base64url(octets));
    let mut flipped = signature.clone();
    flipped[40] ^= 1;
    let integer = |half: &[u8]| {
        let digits: Vec<u8> = half.iter().copied().skip_while(|octet| *octet == 0).collect();
        let padded = if digits[0] > 0x7f { [&[0][..], &digits].concat() } else { digits };
        super::draft::tlv(0x02, &padded)
    };
    let der = [integer(&signature[..32]), integer(&signature[32..])].concat();
    let changed = text.replace("\"pay\"", "\"sre\"");
    let changed =
        format!("{}.{}.{}", base64url(&header), base64url(changed), base64url(&signature));
    let all = [
        ("a flipped bit", with(&flipped)),
        ("an empty signature", with(&[])),
        ("zeros as signature", with(&[0; 64])),
        ("a signature in DER", with(&super::draft::tlv(0x30, &der))),
        ("a signature of 65 bytes", with(&[&signature[..], &[0]].concat())),
        ("halves exchanged", with(&[&signature[32..], &signature[..32]].concat())),
        ("changed claims", changed),
        ("a stranger's key of the same id", made.stranger.sign("ES256", &header, &text)),
    ];
    for (name, token) in all {
        made.add(name, SIGNATURE, token, Some("signature"));
    }
    let token = made.partner.sign("ES256", &made.partner.header("ES256"), &text);
    made.add("signed by a federated domain", DOMAIN, token, Some("signature"));
    let key = made.key("rs256");
    let mut foreign = claims();
    foreign["sub"] = json!("spiffe://partner.example/web");
    let token = key.sign("RS256", &key.header("RS256"), &foreign.to_string());
    made.add("ours for a federated ID", DOMAIN, token, Some("unknown_key"));
    let token = made.partner.sign("ES256", &made.partner.header("ES256"), &foreign.to_string());
    made.add("a federated token", DOMAIN, token, None);
}

fn subjects(made: &mut Made) {
    let sub = |text: &str| ("sub", json!(text));
    made.claim("the domain's own ID", SUB, sub("spiffe://corp.example"), None);
    let mut none = claims();
    none.as_object_mut().unwrap().remove("sub");
    made.claims("no sub", SUB, &none, Some("no_subject"));
    made.claim("a sub that is a list", SUB, ("sub", json!([WORKLOAD])), Some("no_subject"));
    made.claim("a sub that is null", SUB, ("sub", json!(null)), Some("no_subject"));
    for (name, text, reason) in [
        ("an empty sub", "", "subject.scheme"),
        ("a name as sub", "api", "subject.scheme"),
        ("a web address as sub", "https://corp.example/api", "subject.scheme"),
        ("a slash at the end of sub", "spiffe://corp.example/api/", "subject.segment"),
        ("dots in sub", "spiffe://corp.example/a/../api", "subject.segment"),
        ("percent signs in sub", "spiffe://corp.example/%61pi", "subject.path_byte"),
        ("a port in sub", "spiffe://corp.example:443/api", "subject.trust_domain_byte"),
    ] {
        made.claim(name, SUB, sub(text), Some(reason));
    }
    let capital = sub("spiffe://Corp.example/api");
    let reason = Some("subject.trust_domain_byte");
    made.claim("capitals in sub", ids::CASE, capital, reason);
    let unknown = sub("spiffe://stranger.example/api");
    made.claim("an unknown domain", DOMAIN, unknown, Some("unknown_trust_domain"));
    let revoked = sub("spiffe://revoked.example/api");
    made.claim("a domain without keys", REVOKED, revoked, Some("unknown_key"));
}

fn audiences(made: &mut Made) {
    let aud = |value: Value| ("aud", value);
    made.claim("one audience as text", AUD_FORM, aud(json!(AUDIENCE)), None);
    made.claim("ours among others", AUD, aud(json!(["a", AUDIENCE, "b"])), None);
    let most = |count: usize| {
        let others = (1..count).map(|n| n.to_string());
        json!(others.chain([AUDIENCE.to_owned()]).collect::<Vec<_>>())
    };
    made.claim("32 audiences", BOUNDS, aud(most(32)), None);
    made.claim("33 audiences", BOUNDS, aud(most(33)), Some("no_audience"));
    let mut none = claims();
    none.as_object_mut().unwrap().remove("aud");
    made.claims("no aud", AUD, &none, Some("no_audience"));
    for (name, value) in [
        ("an empty aud", json!([])),
        ("an aud that is null", json!(null)),
        ("an aud that is a number", json!(7)),
        ("an aud that is an object", json!({ (AUDIENCE): true })),
        ("a number among audiences", json!([AUDIENCE, 7])),
        ("a list among audiences", json!([[AUDIENCE]])),
    ] {
        made.claim(name, AUD_FORM, aud(value), Some("no_audience"));
    }
    for (name, value) in [
        ("another audience", json!(["spiffe://corp.example/queue"])),
        ("an audience of no letters", json!("")),
        ("the beginning of ours", json!("spiffe://corp.example/d")),
        ("more than ours", json!("spiffe://corp.example/db/")),
        ("ours in capitals", json!("SPIFFE://CORP.EXAMPLE/DB")),
        ("two in one text", json!(format!("{AUDIENCE} a"))),
    ] {
        made.claim(name, AUD, aud(value), Some("other_audience"));
    }
}

fn times(made: &mut Made) {
    let exp = |value: Value| ("exp", value);
    let fraction = 4_102_444_800.5;
    made.claim("an exp with a fraction", EXP, exp(json!(fraction)), None);
    let mut none = claims();
    none.as_object_mut().unwrap().remove("exp");
    made.claims("no exp", EXP, &none, Some("no_expiry"));
    for (name, value) in [
        ("an exp as text", json!(LATER.to_string())),
        ("an exp that is null", json!(null)),
        ("an exp below zero", json!(-1)),
        ("an exp beyond all dates", json!(u64::MAX)),
        ("an exp of 1e300", json!(1e300)),
    ] {
        made.claim(name, EXP, exp(value), Some("no_expiry"));
    }
    made.claim("an exp of 2020", EXP, exp(json!(PAST)), Some("expired"));
    made.claim("an exp of 1970", EXP, exp(json!(0)), Some("expired"));
    made.claim("an exp that is now", EXP, exp(json!(NOW)), Some("expired"));
    made.claim("an exp in a second", EXP, exp(json!(NOW + 1)), None);
    made.claim("an nbf of 2020", NBF, ("nbf", json!(PAST)), None);
    made.claim("an nbf that is now", NBF, ("nbf", json!(NOW)), None);
    made.claim("an nbf in a second", NBF, ("nbf", json!(NOW + 1)), Some("not_yet"));
    made.claim("an nbf of 2099", NBF, ("nbf", json!(LATER - 3600)), Some("not_yet"));
    made.claim("an nbf as text", NBF, ("nbf", json!(PAST.to_string())), Some("not_before"));
    made.claim("an nbf that is null", NBF, ("nbf", json!(null)), Some("not_before"));
    made.claim("an iat 60 s ahead", IAT_AHEAD, ("iat", json!(NOW + 60)), None);
    made.claim("an iat 61 s ahead", IAT_AHEAD, ("iat", json!(NOW + 61)), Some("issued_at"));
    made.claim("an iat as text", IAT, ("iat", json!("2020-01-01")), Some("issued_at"));
    let mut none = claims();
    none.as_object_mut().unwrap().remove("iat");
    made.claims("no iat", IAT, &none, None);
    made.claim("claims of all kinds", IAT, ("jti", json!({ "a": [1, null, true] })), None);
}

fn odd_keys(made: &mut Made) {
    let text = claims().to_string();
    for (name, rule, kid, alg, reason) in [
        ("a key for RS512 only", META, "only-rs512", "RS512", None),
        ("RS256 with a key for RS512 only", META, "only-rs512", "RS256", Some("key_mismatch")),
        ("a key for encryption", META, "encrypt", "ES256", Some("unknown_key")),
        ("a key whose private half is known", PRIVATE, "leaked", "ES256", Some("unknown_key")),
        ("a key of another use", KID_KNOWN, "sig", "ES256", Some("unknown_key")),
    ] {
        let key = made.key(kid);
        let token = key.sign(alg, &key.header(alg), &text);
        made.add(name, rule, token, reason);
    }
    let weak = r#"{"alg":"RS256","kid":"weak"}"#;
    let token = made.key("rs256").sign("RS256", weak, &text);
    made.add("an RSA key of 1024 bits", STRENGTH, token, Some("unknown_key"));
}
