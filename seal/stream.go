package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/spike-ha/spike-ha/seal/internal/erase"
	"github.com/spike-ha/spike-ha/seal/internal/locked"
)

// A sealed stream is data of any length, encrypted and decrypted piece by piece. It is the STREAM construction of Hoang,
// Reyhanitabar, Rogaway and Vizár ("Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", CRYPTO 2015):
//
//	header: format(1) ‖ epoch id(8) ‖ process id(16) ‖ salt(32)
//	chunks: AES-256-GCM ciphertext of 65,536 bytes, the last one's of 1 to 65,536, each with its tag(16)
//
// An empty stream has one chunk, of no bytes. The key is HKDF-SHA-256(epoch's key; cluster id, epoch id, process id,
// salt), the AAD of each chunk the header and the context, its nonce the chunk's number in 11 bytes and one byte that is 1 for the last chunk
// alone: chunks that are left out, moved, doubled or added do not open. The salt is random, so each stream has a key
// of its own and its nonces are no secret counter to keep.

const (
	saltSize     = 32
	streamHeader = 1 + epochIDSize + processIDSize + saltSize

	// StreamChunk is how many bytes of plaintext are encrypted at once, and so held in memory for each stream.
	StreamChunk = 64 << 10
	// maxChunks bounds a stream to 256 TiB.
	maxChunks = 1 << 32
)

// streamUse is what a stream is for: what one is made for opens as no other.
type streamUse struct {
	format  byte // the header's first: not that of a record, which it is told apart from by that
	purpose Purpose
	label   string // of the key's derivation
}

var (
	cipherStream  = streamUse{2, Cipher, "spike-ha/seal/1/stream-key"}
	archiveStream = streamUse{3, Archive, "spike-ha/seal/1/archive-stream-key"}
)

// stream is what both directions have in common.
type stream struct {
	seal    *Seal
	use     streamUse
	ticket  uint64 // from when the stream began: Lock ends it, even if keys are here again
	header  [streamHeader]byte
	context []byte // authenticated with the header
	next    uint64 // number of the next chunk
}

// aad is what is authenticated with each chunk: the header, and the context where there is one.
func (s *stream) aad() []byte {
	if s.context == nil {
		return s.header[:]
	}
	return append(s.header[:streamHeader:streamHeader], s.context...)
}

// work calls f with what the next chunk is sealed or opened with, which f must not keep. The key is derived for each
// chunk anew: a stream that waits for the network holds none, and after Lock there is none.
func (s *stream) work(last bool, f func(aead cipher.AEAD, nonce []byte) error) error {
	if s.next >= maxChunks {
		return fmt.Errorf("%w: a stream has at most %d bytes", ErrTooLarge, uint64(maxChunks)*StreamChunk)
	}
	if s.seal.ticket() != s.ticket {
		return ErrSealed
	}
	k, err := s.seal.acquire()
	if err != nil {
		return err
	}
	defer k.release()
	id, process, salt := epochID(s.header[1:]), s.header[1+epochIDSize:][:processIDSize], s.header[streamHeader-saltSize:]
	e := k.epochs[id]
	if e == nil || e.purpose != s.use.purpose {
		return ErrOpen
	}
	info := label(s.use.label, k.cluster.ID[:], id[:], process)
	var nonce [nonceSize]byte
	binary.BigEndian.PutUint64(nonce[3:], s.next)
	if last {
		nonce[nonceSize-1] = 1
	}
	erase.Do(func() {
		var aead cipher.AEAD
		if aead, err = streamCipher(e.key, salt, info); err == nil {
			err = f(aead, nonce[:])
		}
	})
	s.next++
	return err
}

func streamCipher(epochKey, salt []byte, info string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, epochKey, salt, info, keySize)
	if err != nil {
		return nil, fmt.Errorf("seal: deriving a stream's key: %w", err)
	}
	defer locked.Wipe(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return cipher.NewGCM(block)
}

// EncryptStream gives a writer that encrypts to dst what is written to it, under the newest cipher key. Only Close
// makes the stream whole: without it, it does not open to its end. The writer is for one goroutine. Its
// errors: those of dst, ErrSealed after Lock, ErrTooLarge; after one the stream is lost. Error: ErrSealed.
func (s *Seal) EncryptStream(dst io.Writer) (io.WriteCloser, error) {
	return s.encryptStream(cipherStream, dst, nil)
}

func (s *Seal) encryptStream(use streamUse, dst io.Writer, context []byte) (io.WriteCloser, error) {
	w := &streamWriter{stream: stream{seal: s, use: use, ticket: s.ticket(), context: context}, dst: dst, buffer: make([]byte, 0, StreamChunk+tagSize)}
	k, err := s.acquire()
	if err != nil {
		return nil, err
	}
	defer k.release()
	header := append(w.header[:0], use.format)
	id, process := k.current[use.purpose].id, k.writer.Load().process // every keyring has a key of each: checkKeyring
	header = append(append(header, id[:]...), process[:]...)
	rand.Read(header[len(header):streamHeader])
	return w, nil
}

type streamWriter struct {
	stream
	dst    io.Writer
	buffer []byte // plaintext of the next chunk, with room for its tag
	err    error  // once there is one, for good
}

var errStreamClosed = errors.New("seal: the stream was closed")

// Write implements io.Writer.
func (w *streamWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 && w.err == nil {
		if len(w.buffer) == StreamChunk { // and something follows
			w.flush(false)
			continue
		}
		part := p[:min(len(p), StreamChunk-len(w.buffer))]
		w.buffer = append(w.buffer, part...)
		p, n = p[len(part):], n+len(part)
	}
	return n, w.err
}

// Close writes the last chunk.
func (w *streamWriter) Close() error {
	if w.err == nil {
		w.flush(true)
	}
	clear(w.buffer[:cap(w.buffer)])
	if w.err != nil {
		return w.err
	}
	w.err = errStreamClosed
	return nil
}

func (w *streamWriter) flush(last bool) {
	first := w.next == 0
	sealed := w.buffer
	w.err = w.work(last, func(aead cipher.AEAD, nonce []byte) error {
		sealed = aead.Seal(sealed[:0], nonce, sealed, w.aad()) // in place: there is room
		return nil
	})
	if w.err == nil && first {
		_, w.err = w.dst.Write(w.header[:])
	}
	if w.err == nil {
		_, w.err = w.dst.Write(sealed)
	}
	w.buffer = w.buffer[:0]
}

// DecryptStream gives a reader of what was written to an EncryptStream of this cluster, from its ciphertext. What it gives
// is authentic, and whole if it ends with io.EOF: whoever hands it on before must be able to say that it was cut.
// It reads src to its end. The reader is for one goroutine. Its errors: those of src, ErrSealed after Lock, and for
// everything wrong with the bytes alike, ErrOpen. Error: ErrSealed.
func (s *Seal) DecryptStream(src io.Reader) (io.Reader, error) {
	return s.decryptStream(cipherStream, src, nil)
}

func (s *Seal) decryptStream(use streamUse, src io.Reader, context []byte) (io.Reader, error) {
	r := &streamReader{stream: stream{seal: s, use: use, ticket: s.ticket(), context: context}, src: src}
	if s.Sealed() {
		return nil, ErrSealed
	}
	return r, nil
}

type streamReader struct {
	stream
	src    io.Reader
	buffer []byte // a chunk and one byte more, by which it is known not to be the last; nil before the header was read
	ahead  int    // bytes of the next chunk at the buffer's end: 0 or 1
	plain  []byte // what was opened and not read yet, in the buffer
	err    error  // once there is one, for good
}

// Read implements io.Reader.
func (r *streamReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.plain) == 0 && r.err == nil {
		r.fill()
	}
	if len(r.plain) == 0 {
		return 0, r.err
	}
	n := copy(p, r.plain)
	clear(r.plain[:n])
	r.plain = r.plain[n:]
	return n, nil
}

// fill opens the next chunk. Afterwards err may be set although there is something to read: first that, then the error.
func (r *streamReader) fill() {
	const sealed = StreamChunk + tagSize
	if r.buffer == nil {
		if _, err := io.ReadFull(r.src, r.header[:]); err != nil {
			r.err = cut(err)
			return
		}
		if r.header[0] != r.use.format {
			r.err = ErrOpen
			return
		}
		r.buffer = make([]byte, sealed+1)
	}
	copy(r.buffer, r.buffer[sealed:][:r.ahead])
	n, err := io.ReadFull(r.src, r.buffer[r.ahead:])
	n += r.ahead
	last := err != nil
	switch {
	case last && !errors.Is(cut(err), ErrOpen):
		r.err = err
		return
	case last && (n < tagSize || n == tagSize && r.next > 0):
		r.err = ErrOpen // cut, or an empty last chunk that nobody wrote
		return
	case !last:
		n = sealed
	}
	r.ahead = 1
	var plain []byte
	r.err = r.work(last, func(aead cipher.AEAD, nonce []byte) (err error) {
		if plain, err = aead.Open(r.buffer[:0], nonce, r.buffer[:n], r.aad()); err != nil { // in place
			return ErrOpen
		}
		return nil
	})
	if r.err != nil {
		return
	}
	r.plain = plain
	if last {
		r.err = io.EOF
	}
}

// cut turns the end of the source, where there should be more, into what it means.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrOpen
	}
	return err
}
