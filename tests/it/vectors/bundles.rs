//! Bundle documents and maps of them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::chains::{OWN, PARTNER, World};
use super::token_draft::{TokenKey, base64url};
use super::{Kind, Vector};
use doorward::identity::BundleDocument;

const KEYS: &str = "SPIFFE Bundle §4.1.3: `keys` is an array of JWKs";
const EMPTY: &str = "SPIFFE Bundle §4.1.3: an empty array revokes every key";
const KTY: &str = "SPIFFE Bundle §4.2.1: an unknown or missing kty costs its element only";
const USE: &str = "SPIFFE Bundle §4.2.2: an unknown or missing use costs its element only";
const SEQUENCE: &str = "SPIFFE Bundle §4.1.1: spiffe_sequence is an integer of at least 64 bits";
const HINT: &str = "SPIFFE Bundle §4.1.2: spiffe_refresh_hint is an integer, in seconds";
const X5C: &str = "X509-SVID §6.2: without x5c, or with an empty one, the entry is ignored";
const X5C_FIRST: &str = "X509-SVID §6.2: all but the first certificate of x5c are ignored";
const X509_KID: &str =
    "Doorward: a kid at an X.509 key, which X509-SVID §6.1 forbids, costs nothing";
const X5C_BAD: &str = "Doorward: an entry whose certificate can't be read or is no CA's is ignored";
const JWT_KID: &str = "JWT-SVID §6.1: jwt-svid keys have a kid; one without is ignored";
const JWT_BAD: &str =
    "RFC 7518 §6: a key whose parameters are wrong is none; it costs its element only";
const STRENGTH: &str = "RFC 7518 §3.3: RSA keys have at least 2048 bits";
const PRIVATE: &str = "Doorward: a key whose private half was published is ignored";
const META: &str = "RFC 7517 §4.3, §4.4: alg and key_ops say what a key may do";
const TWICE: &str = "Doorward: members of an object are unique (RFC 8259 §4 says SHOULD)";
const KID_TWICE: &str = "Doorward: key ids of tokens are unique (RFC 7517 §4.5 says SHOULD)";
const JSON: &str = "RFC 8259 §2: a JSON text";
const BOUNDS: &str = "Doorward: at most 64 keys, 8 levels and 1 MiB are read";
const MORE: &str = "SPIFFE Bundle §4.1, RFC 7517 §5: members that are not known are ignored";
const MAP: &str = "SPIFFE Bundle §5.1.1: `trust_domains` maps trust domain names to bundles";
const MAP_TWICE: &str = "SPIFFE Bundle §5.1.1: a trust domain that stands twice rejects the map";
const MAP_HINT: &str = "SPIFFE Bundle §5.1.1: refresh hints inside a map count for nothing";

struct Made {
    x509: Vec<Value>,
    jwt: Vec<Value>,
    vectors: Vec<Vector>,
}

impl Made {
    fn add(&mut self, name: &str, rule: &str, text: String) -> &mut Vector {
        let mut vector = Vector::new(Kind::Bundle, name, rule, json!(text));
        vector.trust_domain = Some(OWN.to_owned());
        self.vectors.push(vector);
        self.vectors.last_mut().unwrap()
    }

    fn bad(&mut self, name: &str, rule: &str, text: String, reason: &str) {
        let vector = self.add(name, rule, text);
        *vector = vector.clone().refused(reason);
    }

    /// One element before others that are good.
    fn element(&mut self, name: &str, rule: &str, element: &Value, others: &[Value]) {
        let keys = [std::slice::from_ref(element), others].concat();
        self.add(name, rule, json!({ "keys": keys }).to_string());
    }

    fn map(&mut self, name: &str, rule: &str, text: String, reason: Option<&str>) {
        let mut vector = Vector::new(Kind::BundleMap, name, rule, json!(text));
        if let Some(reason) = reason {
            vector = vector.refused(reason);
        }
        self.vectors.push(vector);
    }
}

fn with(key: &Value, member: &str, value: Value) -> Value {
    let mut key = key.clone();
    key[member] = value;
    key
}

fn without(key: &Value, member: &str) -> Value {
    let mut key = key.clone();
    key.as_object_mut().unwrap().remove(member);
    key
}

pub fn all() -> Vec<Vector> {
    let world = World::new();
    let domain = doorward::model::TrustDomain::parse(OWN).unwrap();
    let hint = std::time::Duration::from_secs(300);
    let document = BundleDocument::new(domain, world.own_roots(), vec![], 7, hint).unwrap();
    let document: Value = serde_json::from_slice(&document.to_json()).unwrap();
    let jwt = ["ES256", "RS256", "ES384", "ES512"];
    let mut made = Made {
        x509: document["keys"].as_array().unwrap().clone(),
        jwt: jwt.map(|algorithm| TokenKey::new(algorithm, algorithm).jwk()).to_vec(),
        vectors: Vec::new(),
    };
    documents(&mut made);
    x509_elements(&mut made);
    jwt_elements(&mut made);
    broken(&mut made);
    maps(&mut made);
    made.vectors
}

fn documents(made: &mut Made) {
    let (x509, jwt) = (made.x509.clone(), made.jwt.clone());
    let both = [&x509[..1], &jwt[..2]].concat();
    let sequence = |value: Value| json!({ "keys": both, "spiffe_sequence": value }).to_string();
    let hint = |value: Value| json!({ "keys": both, "spiffe_refresh_hint": value }).to_string();
    let whole = json!({ "keys": both, "spiffe_sequence": 7, "spiffe_refresh_hint": 300 });
    made.add("the good document", KEYS, whole.to_string());
    made.add("only keys for X.509", KEYS, json!({ "keys": x509[..1] }).to_string());
    made.add("only keys for tokens", KEYS, json!({ "keys": jwt[..2] }).to_string());
    made.add("no keys", EMPTY, json!({ "keys": [] }).to_string());
    made.add("no sequence and no hint", SEQUENCE, json!({ "keys": both }).to_string());
    made.add("the largest sequence of 64 bits", SEQUENCE, sequence(json!(u64::MAX)));
    made.add("a hint of zero", HINT, hint(json!(0)));
    let more = json!({ "keys": both, "more": { "of": ["this"] } });
    made.add("a member that is not known", MORE, more.to_string());
    made.add("space around it", JSON, format!("\n {whole} \n"));
    for (name, value) in [
        ("a sequence below zero", json!(-1)),
        ("a sequence with a fraction", json!(1.5)),
        ("a sequence as text", json!("7")),
        ("a sequence that is null", json!(null)),
    ] {
        made.bad(name, SEQUENCE, sequence(value), "sequence");
    }
    let large = r#"{"keys":[],"spiffe_sequence":18446744073709551616}"#;
    let beyond = "Doorward: sequences beyond 64 bits are refused (SPIFFE Bundle §4.1.1)";
    made.bad("a sequence of 65 bits", beyond, large.to_owned(), "sequence");
    made.bad("a hint below zero", HINT, hint(json!(-300)), "refresh_hint");
    made.bad("a hint as text", HINT, hint(json!("5m")), "refresh_hint");
}

fn x509_elements(made: &mut Made) {
    let good = made.x509[0].clone();
    let others = [made.x509[1].clone(), made.jwt[1].clone()];
    let other = made.x509[1]["x5c"][0].clone();
    let key = super::chains::key();
    let leaf = super::draft::Draft::leaf("spiffe://corp.example/x").self_signed(&key);
    for (name, rule, element) in [
        ("no use", USE, without(&good, "use")),
        ("an unknown use", USE, with(&good, "use", json!("sig"))),
        ("a use in capitals", USE, with(&good, "use", json!("X509-SVID"))),
        ("a use that is no text", USE, with(&good, "use", json!(["x509-svid"]))),
        ("no kty", KTY, without(&good, "kty")),
        ("an unknown kty", KTY, with(&good, "kty", json!("AKP"))),
        ("an element that is no object", KEYS, json!("x509-svid")),
        ("no x5c", X5C, without(&good, "x5c")),
        ("an empty x5c", X5C, with(&good, "x5c", json!([]))),
        ("two certificates in x5c", X5C_FIRST, with(&good, "x5c", json!([good["x5c"][0], other]))),
        ("nonsense behind the first", X5C_FIRST, with(&good, "x5c", json!([good["x5c"][0], 7]))),
        ("an x5c that is text", X5C_BAD, with(&good, "x5c", good["x5c"][0].clone())),
        ("an x5c in base64url", X5C_BAD, with(&good, "x5c", json!(["__--"]))),
        ("an x5c that is no certificate", X5C_BAD, with(&good, "x5c", json!(["AAAA"]))),
        ("a leaf in x5c", X5C_BAD, with(&good, "x5c", json!([STANDARD.encode(&leaf)]))),
        ("a kid at an X.509 key", X509_KID, with(&good, "kid", json!("root"))),
    ] {
        made.element(name, rule, &element, &others);
    }
}

fn jwt_elements(made: &mut Made) {
    let (ec, rsa) = (made.jwt[0].clone(), with(&made.jwt[1], "kid", json!("other")));
    let others = [made.jwt[1].clone()];
    let x = base64url([9; 32]);
    let ed25519 = json!({ "kty": "OKP", "crv": "Ed25519", "x": x, "kid": "k", "use": "jwt-svid" });
    let (es512, y) = (made.jwt[3].clone(), made.jwt[2]["y"].clone());
    let kid = |value: Value| with(&ec, "kid", value);
    for (name, rule, element) in [
        ("a key on P-521", KEYS, es512),
        (
            "alg, use and key_ops",
            META,
            with(&with(&ec, "alg", json!("ES256")), "key_ops", json!(["verify"])),
        ),
        ("no kid", JWT_KID, without(&ec, "kid")),
        ("an empty kid", JWT_KID, kid(json!(""))),
        ("a kid that is a number", JWT_KID, kid(json!(7))),
        ("a key for WIT-SVIDs", USE, with(&ec, "use", json!("wit-svid"))),
        (
            "a symmetric key",
            PRIVATE,
            json!({ "kty": "oct", "k": "AAAA", "kid": "k", "use": "jwt-svid" }),
        ),
        ("an Ed25519 key", KTY, ed25519),
        ("an unknown curve", JWT_BAD, with(&ec, "crv", json!("secp256k1"))),
        ("the name of another curve", JWT_BAD, with(&ec, "crv", json!("P-384"))),
        ("a short coordinate", JWT_BAD, with(&ec, "x", json!("AAAA"))),
        ("a coordinate of another point", JWT_BAD, with(&ec, "y", json!(base64url([1; 32])))),
        ("a coordinate of another curve", JWT_BAD, with(&ec, "y", y)),
        (
            "a coordinate with padding",
            JWT_BAD,
            with(&ec, "x", json!(format!("{}=", ec["x"].as_str().unwrap()))),
        ),
        ("an RSA key of 1024 bits", STRENGTH, with(&rsa, "n", json!(base64url([0xff; 128])))),
        ("an RSA key of 16384 bits", BOUNDS, with(&rsa, "n", json!(base64url(vec![0xff; 2048])))),
        (
            "a modulus with a leading zero",
            JWT_BAD,
            with(&rsa, "n", json!(base64url([&[0][..], &[0xff; 256]].concat()))),
        ),
        ("an exponent of one", JWT_BAD, with(&rsa, "e", json!("AQ"))),
        ("an even exponent", JWT_BAD, with(&rsa, "e", json!("Ag"))),
        ("a published private key", PRIVATE, with(&ec, "d", json!(base64url([7; 32])))),
        ("an alg of another kind of key", META, with(&ec, "alg", json!("RS256"))),
        ("an alg that tokens can't have", META, with(&ec, "alg", json!("ES256K"))),
        ("key_ops without verify", META, with(&ec, "key_ops", json!(["sign"]))),
        ("key_ops that is text", META, with(&ec, "key_ops", json!("verify"))),
    ] {
        made.element(name, rule, &element, &others);
    }
    let twice = json!({ "keys": [ec, with(&made.jwt[2], "kid", ec["kid"].clone())] });
    made.bad("two keys with one kid", KID_TWICE, twice.to_string(), "key_id_twice");
}

fn broken(made: &mut Made) {
    let ec = made.jwt[0].to_string();
    let nested = format!(r#"{{"keys":[],"more":{}{}}}"#, "[".repeat(8), "]".repeat(8));
    for (name, rule, text, reason) in [
        ("no object", KEYS, "[]", "not_object"),
        ("no member keys", KEYS, r#"{"Keys":[]}"#, "keys"),
        ("keys that are an object", KEYS, r#"{"keys":{}}"#, "keys"),
        ("keys that are null", KEYS, r#"{"keys":null}"#, "keys"),
        ("no bytes", JSON, "", "json"),
        ("cut short", JSON, r#"{"keys":["#, "json"),
        ("more behind it", JSON, r#"{"keys":[]}{}"#, "json"),
        ("a comma too many", JSON, r#"{"keys":[],}"#, "json"),
        ("a byte order mark", JSON, "\u{feff}{\"keys\":[]}", "json"),
        ("keys twice", TWICE, r#"{"keys":[],"keys":[]}"#, "json"),
        (
            "kid twice",
            TWICE,
            &format!(r#"{{"keys":[{}]}}"#, ec.replacen('{', r#"{"kid":"a","#, 1)),
            "json",
        ),
        ("an escaped member twice", TWICE, r#"{"keys":[],"\u006beys":[]}"#, "json"),
        ("eight levels below keys", BOUNDS, &nested, "json"),
        ("65 keys", BOUNDS, &format!(r#"{{"keys":[{}0]}}"#, "0,".repeat(64)), "too_many_keys"),
    ] {
        made.bad(name, rule, text.to_owned(), reason);
    }
}

fn maps(made: &mut Made) {
    let one = json!({ "keys": made.x509[..1], "spiffe_sequence": 3 });
    let other = json!({ "keys": made.jwt[..1] });
    let two = json!({ "trust_domains": { (OWN): one, (PARTNER): other } });
    made.map("two trust domains", MAP, two.to_string(), None);
    made.map("no trust domain", MAP, r#"{"trust_domains":{}}"#.into(), None);
    let hinted = with(&one, "spiffe_refresh_hint", json!(1));
    let hinted = json!({ "trust_domains": { (OWN): hinted } });
    made.map("a refresh hint inside", MAP_HINT, hinted.to_string(), None);
    let twice = format!(r#"{{"trust_domains":{{"{OWN}":{one},"{OWN}":{other}}}}}"#);
    made.map("a trust domain twice", MAP_TWICE, twice, Some("json"));
    let escaped = r#"{"trust_domains":{"a.b":{"keys":[]},"a\u002eb":{"keys":[]}}}"#;
    made.map("a trust domain twice, once escaped", MAP_TWICE, escaped.into(), Some("json"));
    made.map("no member trust_domains", MAP, one.to_string(), Some("trust_domains"));
    for (name, member) in [
        ("a SPIFFE ID as a name", "spiffe://corp.example"),
        ("a name in capitals", "Corp.example"),
        ("an empty name", ""),
    ] {
        let map = json!({ "trust_domains": { (member): one } });
        made.map(name, MAP, map.to_string(), Some("domain_name"));
    }
    let rule = "Doorward: a map is taken whole or not at all";
    let half = json!({ "trust_domains": { (OWN): one, (PARTNER): {} } });
    made.map("one bundle of two is none", rule, half.to_string(), Some("of.keys"));
}
