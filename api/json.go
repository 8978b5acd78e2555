package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spike-ha/spike-ha/secret"
)

// Limits of JSON bodies.
const (
	maxDepth = 8
	// maxElements bounds the lists in strict bodies: no route takes a longer one,
	// and a few bytes of JSON can become a large object.
	maxElements = 1024
	// DefaultBodyLimit is read at most of a request. A secret of 1 MiB, each byte
	// of which JSON escapes in six, would still not fit: what counts for a client
	// is the encoded size.
	DefaultBodyLimit = 1<<20 + 64<<10
)

var errBodyTooLarge = &secret.Error{Code: secret.CodeTooLarge, Subject: "request body", Message: "it is larger than this server reads"}

// readBody reads at most limit bytes; a Content-Length over it is refused
// before anything is read.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, errBodyTooLarge
	}
	body, err := io.ReadAll(http.MaxBytesReader(inner(w), r.Body, limit))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return nil, errBodyTooLarge
	}
	if err != nil {
		return nil, secret.Invalid("request body", "it could not be read to its end")
	}
	return body, nil
}

// decode reads one JSON object into v. Duplicate keys (also such that differ
// only in case, as encoding/json would take them), nesting deeper than maxDepth,
// text that decoding would change and anything after the object are refused;
// unknown fields only when strict. Its errors never repeat what was sent.
func decode(body []byte, v any, strict bool) error {
	if err := scan(body, strict); err != nil {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	if strict {
		decoder.DisallowUnknownFields()
	}
	if err := decoder.Decode(v); err != nil {
		if strict && strings.HasPrefix(err.Error(), "json: unknown field") {
			return secret.Invalid("request body", "it has a field that this route does not know")
		}
		return secret.Invalid("request body", "it does not have the form that this route expects")
	}
	return nil
}

// fold maps names that encoding/json takes for the same field to one: those
// that Unicode's simple folding makes equal, "ſ" and "s" among them.
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		for {
			next := unicode.SimpleFold(r)
			if next <= r {
				return next
			}
			r = next
		}
	}, name)
}

// callersOwn is the one field whose keys are the caller's, not ours.
var callersOwn = fold("values")

// loneSurrogate finds a \u escape of half a character, which encoding/json would
// replace without a word: a secret must come back as it was sent.
func loneSurrogate(body []byte) bool {
	unit := func(at int) (uint16, bool) {
		if at+6 > len(body) || body[at] != '\\' || body[at+1] != 'u' {
			return 0, false
		}
		n, err := strconv.ParseUint(string(body[at+2:at+6]), 16, 16)
		return uint16(n), err == nil
	}
	for i := bytes.IndexByte(body, '\\'); i < len(body) && i >= 0; {
		first, ok := unit(i)
		switch {
		case ok && first&0xfc00 == 0xd800:
			if second, ok := unit(i + 6); !ok || second&0xfc00 != 0xdc00 {
				return true
			}
			i += 12
		case ok && first&0xfc00 == 0xdc00:
			return true
		default:
			i += 2
		}
		if i >= len(body) {
			break
		}
		next := bytes.IndexByte(body[i:], '\\')
		if next < 0 {
			break
		}
		i += next
	}
	return false
}

// scan checks the structure of the tokens. Names are compared without regard to
// case where fields of ours are matched so: in the top object, and when strict
// (no unknown fields) everywhere but in the caller's own map.
func scan(body []byte, strict bool) error {
	if !utf8.Valid(body) || loneSurrogate(body) {
		return secret.Invalid("request body", "it is not valid UTF-8")
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	type level struct {
		keys  map[string]bool // nil in arrays
		fold  bool
		isKey bool
		last  string // key, folded
		count int    // of elements in an array
	}
	var stack []level
	for {
		token, err := decoder.Token()
		if err == io.EOF && len(stack) == 0 {
			return secret.Invalid("request body", "it is empty")
		}
		if err != nil {
			return secret.Invalid("request body", "it is not valid JSON")
		}
		if len(stack) == 0 && token != json.Delim('{') {
			return secret.Invalid("request body", "it is not a JSON object")
		}
		if n := len(stack); n > 0 && stack[n-1].isKey {
			if key, ok := token.(string); ok {
				stack[n-1].last = fold(key)
				if stack[n-1].fold {
					key = stack[n-1].last
				}
				if stack[n-1].keys[key] {
					return secret.Invalid("request body", "it has a key twice")
				}
				stack[n-1].keys[key] = true
				stack[n-1].isKey = false
				continue
			}
		}
		if n := len(stack); n > 0 && stack[n-1].keys == nil && token != json.Delim(']') {
			if stack[n-1].count++; strict && stack[n-1].count > maxElements {
				return secret.Invalid("request body", "it has a list that is too long")
			}
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			if len(stack) == maxDepth {
				return secret.Invalid("request body", "it is nested too deeply")
			}
			if token == json.Delim('{') {
				n := len(stack)
				folded := n == 0 || strict && stack[n-1].last != callersOwn
				stack = append(stack, level{keys: map[string]bool{}, isKey: true, fold: folded})
			} else {
				stack = append(stack, level{})
			}
			continue
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:len(stack)-1]
			if len(stack) == 0 {
				if _, err := decoder.Token(); err != io.EOF {
					return secret.Invalid("request body", "something follows the JSON object")
				}
				return nil
			}
		}
		if top := &stack[len(stack)-1]; top.keys != nil {
			top.isKey = true // a value ended: a key comes next
		}
	}
}

// send writes v as JSON with the headers of the SPIKE protocol.
func send(w http.ResponseWriter, status int, v any) {
	body, err := marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"err":"api_internal_error","code":"internal"}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store, no-cache, must-revalidate, private")
	h.Set("Pragma", "no-cache")
	h.Set("Expires", "0")
	w.WriteHeader(status)
	w.Write(body)
	clear(body)
}

// marshal encodes without a trailing newline and without escaping HTML, which
// no client of ours shows.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
