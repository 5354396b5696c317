//! Answers of bundle endpoints, taken in pieces of any size, and the addresses of such endpoints.
#![no_main]

use doorward::model::EndpointUrl;
use doorward::wire::HttpResponse;
use libfuzzer_sys::fuzz_target;

const MOST: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let Some((step, bytes)) = data.split_first() else { return };
    let at_once = HttpResponse::new(MOST).take(bytes, true);
    let mut response = HttpResponse::new(MOST);
    let mut came = Ok(None);
    for chunk in bytes.chunks(usize::from(*step).max(1)) {
        came = response.take(chunk, false);
        if came != Ok(None) {
            break;
        }
    }
    if came == Ok(None) {
        came = response.take(&[], true);
    }
    if let Ok(Some(body)) = &came {
        assert!(body.len() <= MOST);
        assert_eq!(at_once, came, "the same in pieces of any size");
    }
    if let Ok(url) = std::str::from_utf8(bytes).map(EndpointUrl::parse)
        && let Ok(url) = url
    {
        assert!(!url.host().is_empty() && url.port() != 0);
        assert!(url.target().starts_with('/'));
        assert!(!url.target().contains(['\r', '\n', ' ']));
        assert_eq!(EndpointUrl::parse(url.as_str()).as_ref(), Ok(&url));
    }
});
