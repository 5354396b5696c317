//! What tools are told of the Workload API's socket: by gRPC-core and protobuf's own reader of
//! descriptors, and by frames made by hand for what no library sends.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tonic::codegen::http;

use super::clients::python_with_spiffe;
use super::http2::call;
use super::workload_api::{endpoint, runtime, soon, stage};

const V1: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const V1ALPHA: &str = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
const HEADER: (&str, &str) = ("workload.spiffe.io", "true");

/// Lists the services and builds those of SPIFFE from the descriptors that it is given, with each
/// version of the service, on one stream each.
const PYTHON: &str = r#"
import sys, grpc
from google.protobuf import descriptor_pb2, descriptor_pool

def fields(data):
    at = 0
    def number():
        nonlocal at
        value, shift = 0, 0
        while True:
            octet = data[at]; at += 1
            value |= (octet & 127) << shift; shift += 7
            if octet < 128: return value
    while at < len(data):
        tag = number()
        if tag & 7 == 2:
            length = number()
            yield tag >> 3, data[at:at + length]
            at += length
        else:
            yield tag >> 3, number()

def question(number, text):
    return bytes([number << 3 | 2, len(text)]) + text.encode()

channel = grpc.insecure_channel(sys.argv[1])
same = lambda data: data
for version in ("v1", "v1alpha"):
    ask = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo", same, same)
    questions = [question(7, ""), question(4, "SpiffeWorkloadAPI"), question(4, "nobody.Knows"),
                 question(4, f"grpc.reflection.{version}.ServerReflection")]
    answers = list(ask(iter(questions), metadata=(("workload.spiffe.io", "true"),), timeout=20))
    told = [dict(fields(answer)) for answer in answers]
    services = [dict(fields(one))[1].decode() for _, one in fields(told[0][6])]
    pool = descriptor_pool.DescriptorPool()
    for answer in (told[1], told[3]):
        # What a file needs stands behind it.
        for _, file in reversed(list(fields(answer[4]))):
            pool.Add(descriptor_pb2.FileDescriptorProto.FromString(file))
    api = pool.FindServiceByName("SpiffeWorkloadAPI")
    svid = pool.FindMessageTypeByName("X509SVID")
    claims = pool.FindMessageTypeByName("ValidateJWTSVIDResponse").fields_by_name["claims"]
    bundles = pool.FindMessageTypeByName("X509SVIDResponse").fields_by_name["federated_bundles"]
    mine = pool.FindServiceByName(f"grpc.reflection.{version}.ServerReflection")
    print(version, ",".join(services))
    print(",".join(method.name for method in api.methods))
    print(",".join(f"{field.name}={field.number}" for field in svid.fields))
    print(claims.message_type.full_name, bundles.message_type.GetOptions().map_entry)
    print(mine.methods[0].input_type.full_name, dict(fields(told[2][7]))[1])
"#;

fn want(version: &str) -> String {
    format!(
        "{version} SpiffeWorkloadAPI,grpc.reflection.v1.ServerReflection,\
         grpc.reflection.v1alpha.ServerReflection\n\
         FetchX509SVID,FetchX509Bundles,FetchJWTSVID,FetchJWTBundles,ValidateJWTSVID\n\
         spiffe_id=1,x509_svid=2,x509_svid_key=3,bundle=4,hint=5\n\
         google.protobuf.Struct True\n\
         grpc.reflection.{version}.ServerReflectionRequest 5\n"
    )
}

#[test]
fn a_tool_finds_the_services_and_their_messages() {
    let Some((python, _)) = python_with_spiffe() else { return };
    let stage = stage();
    // The package `spiffe` brings gRPC and protobuf along.
    let ran = Command::new(python).args(["-c", PYTHON, &endpoint(&stage)]).output().unwrap();
    let why = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(
        String::from_utf8_lossy(&ran.stdout),
        [want("v1"), want("v1alpha")].concat(),
        "{why}"
    );
}

/// A call with these octets as its body; what is answered, and the status behind it.
async fn ask(path: &Path, method: &str, body: Vec<u8>, ends: bool) -> (Vec<u8>, String) {
    let stream = tokio::net::UnixStream::connect(path).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let driving = tokio::spawn(async move {
        let _ = connection.await;
    });
    let request = http::Request::post(format!("http://localhost{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header(HEADER.0, HEADER.1);
    let (answer, mut sending) = client.send_request(request.body(()).unwrap(), false).unwrap();
    sending.send_data(body.into(), ends).unwrap();
    let answer = soon(answer).await.unwrap();
    let mut body = answer.into_body();
    let mut data = Vec::new();
    while let Some(some) = soon(body.data()).await {
        let some = some.unwrap();
        let _ = body.flow_control().release_capacity(some.len());
        data.extend_from_slice(&some);
    }
    let trailers = soon(body.trailers()).await.unwrap().unwrap_or_default();
    let status = trailers.get("grpc-status").map(|it| it.to_str().unwrap().to_owned());
    driving.abort();
    (data, status.unwrap_or_default())
}

/// A question for the services, in its frame.
fn list() -> Vec<u8> {
    vec![0, 0, 0, 0, 2, 0x3a, 0]
}

#[test]
fn the_header_is_demanded_and_questions_are_bounded() {
    let stage = stage();
    let path = stage.workload_socket();
    let holds = |data: &[u8], text: &str| {
        data.windows(text.len()).filter(|some| *some == text.as_bytes()).count()
    };
    runtime().block_on(async {
        for method in [V1, V1ALPHA] {
            let (status, why) = call(&path, method, &[]).await;
            assert_eq!(
                (status.as_str(), why.as_str()),
                ("3", "security header missing from request")
            );
            let (data, status) = ask(&path, method, list(), true).await;
            assert_eq!((holds(&data, "SpiffeWorkloadAPI"), status.as_str()), (1, "0"));
            let (data, status) = ask(&path, method, [list(), list()].concat(), true).await;
            assert_eq!((holds(&data, "SpiffeWorkloadAPI"), status.as_str()), (2, "0"));
        }
        let many = list().repeat(100);
        let (data, status) = ask(&path, V1, many, true).await;
        assert_eq!((holds(&data, "SpiffeWorkloadAPI"), status.as_str()), (64, "8"), "no more");
        for bad in
            [&[0, 0, 0, 8, 1][..], &[0, 0xff, 0xff, 0xff, 0xff], &[1, 0, 0, 0, 0], &[0, 0, 0]]
        {
            let (data, status) = ask(&path, V1, bad.to_vec(), true).await;
            assert_eq!((data.len(), status.as_str()), (0, "3"), "{bad:?}");
        }
        // Whoever asks and then says nothing holds his place for some seconds only.
        let began = std::time::Instant::now();
        let (data, status) = ask(&path, V1, list(), false).await;
        assert_eq!((holds(&data, "SpiffeWorkloadAPI"), status.as_str()), (1, "4"));
        assert!(began.elapsed() >= Duration::from_secs(9), "it was waited for");
    });
}
