package api

import (
	"context"
	"io"
	"net/http"

	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

// The cipher of the SPIKE protocol, version 1: AES-256-GCM with a nonce of 12
// bytes. Our ciphertexts are longer than SPIKE's by the ids of the key and of
// the process, which the caller keeps without looking into them.
const (
	cipherVersion   = 1
	nonceBytes      = 12
	maxPlaintext    = store.MaxCipherBytes
	cipherOverhead  = 8 + 16 + 16 // key id, process id, tag
	maxCiphertext   = maxPlaintext + cipherOverhead
	streamMediaType = "application/octet-stream"
)

type (
	wireVerify struct {
		Nonce      []byte `json:"nonce"`
		Ciphertext []byte `json:"ciphertext"`
	}
	wireEncrypt struct {
		Plaintext []byte `json:"plaintext"`
		Algorithm string `json:"algorithm"` // accepted and ignored, as SPIKE does
	}
	wireEncrypted struct {
		Version    byte   `json:"version"`
		Nonce      []byte `json:"nonce"`
		Ciphertext []byte `json:"ciphertext"`
		failed
	}
	wireDecrypt struct {
		Version    int    `json:"version"`
		Nonce      []byte `json:"nonce"`
		Ciphertext []byte `json:"ciphertext"`
		Algorithm  string `json:"algorithm"`
	}
	wireDecrypted struct {
		Plaintext []byte `json:"plaintext"`
		failed
	}
)

// cipher chooses the stream only when the content type is exactly the stream's.
func (s *Server) cipher(json, stream http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Content-Type") == streamMediaType {
			stream(w, r)
			return
		}
		json(w, r)
	}
}

func (s *Server) encryptJSON() http.HandlerFunc {
	return wire(s, func(ctx context.Context, r store.Request, q wireEncrypt) (wireEncrypted, error) {
		defer clear(q.Plaintext)
		nonce, ciphertext, err := s.cfg.Store.EncryptWire(ctx, r, q.Plaintext)
		if err != nil {
			return wireEncrypted{}, err
		}
		return wireEncrypted{Version: cipherVersion, Nonce: nonce, Ciphertext: ciphertext}, nil
	})
}

func (s *Server) decryptJSON() http.HandlerFunc {
	return wire(s, func(ctx context.Context, r store.Request, q wireDecrypt) (wireDecrypted, error) {
		nonce := q.Nonce
		if q.Version != cipherVersion {
			nonce = nil // the door refuses it, after asking whether the caller may
		}
		plain, err := s.cfg.Store.DecryptWire(ctx, r, nonce, q.Ciphertext)
		if plain == nil {
			plain = []byte{} // "", not null
		}
		return wireDecrypted{Plaintext: plain}, err
	})
}

// Errors of the streams, as SPIKE words them.
const (
	streamNoVersion  = "crypto_failed_to_read_version"
	streamBadVersion = "crypto_unsupported_version"
	streamNoNonce    = "crypto_failed_to_read_nonce"
	streamUnreadable = "data_read_failure"
	streamUnopened   = "decryption failed"
)

func (s *Server) encryptStream(w http.ResponseWriter, r *http.Request) {
	s.stream(w, r, maxPlaintext, func(request store.Request, body []byte) ([]byte, string, error) {
		nonce, ciphertext, err := s.cfg.Store.EncryptWire(r.Context(), request, body)
		if err != nil {
			return nil, "", err
		}
		return append(append([]byte{cipherVersion}, nonce...), ciphertext...), "", nil
	})
}

func (s *Server) decryptStream(w http.ResponseWriter, r *http.Request) {
	s.stream(w, r, 1+nonceBytes+maxCiphertext, func(request store.Request, body []byte) ([]byte, string, error) {
		word := ""
		var nonce, ciphertext []byte
		switch {
		case len(body) == 0:
			word = streamNoVersion
		case body[0] != cipherVersion:
			word = streamBadVersion
		case len(body) < 1+nonceBytes:
			word = streamNoNonce
		default:
			nonce, ciphertext = body[1:1+nonceBytes], body[1+nonceBytes:]
		}
		// Asked in any case: who may not use the cipher learns nothing else.
		plain, err := s.cfg.Store.DecryptWire(r.Context(), request, nonce, ciphertext)
		if code := secret.CodeOf(err); err != nil && code != secret.CodeUndecrypted && code != secret.CodeInvalid {
			return nil, "", err
		}
		if err != nil && word == "" {
			word = streamUnopened
		}
		return plain, word, nil
	})
}

// stream reads a bounded body, works on it and answers in bytes; the failures
// of the work itself are plain text with status 400, those of the guard JSON.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, limit int64, work func(store.Request, []byte) (answer []byte, word string, err error)) {
	request, err := s.open(w, r)
	if err != nil {
		s.sendWire(w, request, &failed{}, err)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(inner(w), r.Body, limit))
	defer clear(body)
	if err != nil {
		s.stamp(w, request)
		http.Error(w, streamUnreadable, http.StatusBadRequest)
		return
	}
	answer, word, err := work(request, body)
	s.stamp(w, request)
	switch {
	case err != nil:
		s.sendWire(w, request, &failed{}, err)
	case word != "":
		http.Error(w, word, http.StatusBadRequest)
	default:
		w.Header().Set("Content-Type", streamMediaType)
		w.Header().Set("Cache-Control", "no-store, no-cache, must-revalidate, private")
		w.Write(answer)
		clear(answer)
	}
}
