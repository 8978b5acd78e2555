package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/spike-ha/spike-ha/secret"
)

// Limits of JSON bodies.
const (
	maxDepth = 8
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
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
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
// only in case, as encoding/json would take them), nesting deeper than maxDepth
// and anything after the object are refused; unknown fields only when strict.
// Its errors never repeat what was sent.
func decode(body []byte, v any, strict bool) error {
	if err := scan(body); err != nil {
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

// scan checks the structure of the tokens.
func scan(body []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	type level struct {
		keys  map[string]bool // nil in arrays
		isKey bool
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
				folded := strings.ToLower(key)
				// In the top object names are matched without regard to case; below
				// it they are the caller's own and keep theirs.
				if n > 1 {
					folded = key
				}
				if stack[n-1].keys[folded] {
					return secret.Invalid("request body", "it has a key twice")
				}
				stack[n-1].keys[folded] = true
				stack[n-1].isKey = false
				continue
			}
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			if len(stack) == maxDepth {
				return secret.Invalid("request body", "it is nested too deeply")
			}
			if token == json.Delim('{') {
				stack = append(stack, level{keys: map[string]bool{}, isKey: true})
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
