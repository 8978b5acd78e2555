package snapshot

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/snapshot/internal/archivepb"

	"github.com/spike-ha/spike-ha/internal/failpoint"
)

// Cipher encrypts and authenticates streams under the archive key. Both ends of one stream name the same context.
type Cipher interface {
	// Seal encrypts what is written to it into w; closing it ends the stream. It does not close w.
	Seal(w io.Writer, context []byte) (io.WriteCloser, error)
	// Open decrypts r. Reading gives authentic bytes only, and ErrDamaged at the first that is not, or when the end is missing.
	Open(r io.Reader, context []byte) io.Reader
}

// Archive is what a bucket holds below a prefix.
type Archive struct {
	bucket Bucket
	prefix string // empty, or ends with a slash
	spool  string // directory for large objects on their way; empty: the system's
}

var prefixForm = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}){0,7}$`)

// ParsePrefix reads the path of a bucket's address: segments of letters, digits and .-_, or nothing.
func ParsePrefix(path string) (string, error) {
	path = strings.Trim(path, "/")
	if path != "" && !prefixForm.MatchString(path) {
		return "", fmt.Errorf("snapshot: %.100q cannot be where archives lie in a bucket: segments of letters, digits and .-_", path)
	}
	return path, nil
}

// New makes an Archive. Prefix is empty or segments joined by slashes.
func New(bucket Bucket, prefix, spool string) *Archive {
	if prefix != "" && prefix[len(prefix)-1] != '/' {
		prefix += "/"
	}
	return &Archive{bucket: bucket, prefix: prefix, spool: spool}
}

// String is where the archive lies, for people.
func (a *Archive) String() string { return a.bucket.String() + "/" + a.prefix }

// LogEntry is one committed entry of the log.
type LogEntry struct {
	Index, Term uint64
	Data        []byte
}

// maxEntry bounds one entry when it is read; it is more than the log takes.
const maxEntry = 128 << 20

// PutSnapshot stores the state that write writes, encrypted on its way into a spool file. It returns the item and the SHA-256
// of the object. sealed, if not nil, is called between encrypting and storing: a keyring that has what the object is sealed under must be
// there before. Errors: ErrExists (with the item), those of Bucket and of sealed.
func (a *Archive) PutSnapshot(ctx context.Context, h Header, c Cipher, write func(io.Writer) error, sealed func(context.Context) error) (Item, [32]byte, error) {
	h.Kind = Snapshot
	return a.spooled(ctx, h, c, write, sealed)
}

// spooled stores an object that may be large, by way of a file.
func (a *Archive) spooled(ctx context.Context, h Header, c Cipher, write func(io.Writer) error, sealed func(context.Context) error) (Item, [32]byte, error) {
	file, err := os.CreateTemp(a.spool, "spike-ha-archive-*")
	if err != nil {
		return Item{}, [32]byte{}, fmt.Errorf("snapshot: no room to spool: %w", err)
	}
	defer func() {
		file.Close()
		os.Remove(file.Name())
	}()
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(file, sum), 256<<10)
	if err := seal(out, h, c, write); err != nil {
		return Item{}, [32]byte{}, err
	}
	if err := out.Flush(); err != nil {
		return Item{}, [32]byte{}, fmt.Errorf("snapshot: spooling: %w", err)
	}
	size, err := file.Seek(0, io.SeekCurrent)
	if err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		return Item{}, [32]byte{}, err
	}
	if sealed != nil {
		if err := sealed(ctx); err != nil {
			return Item{}, [32]byte{}, err
		}
	}
	item, err := a.create(ctx, h, nil, size, file)
	return item, [32]byte(sum.Sum(nil)), err
}

// PutSegment stores entries, which are all commands from index h.First to h.Last. Errors: as PutSnapshot.
func (a *Archive) PutSegment(ctx context.Context, h Header, c Cipher, entries []LogEntry, sealed func(context.Context) error) (Item, error) {
	h.Kind = Segment
	var b bytes.Buffer
	err := seal(&b, h, c, func(w io.Writer) error {
		at := h.First
		for _, e := range entries {
			if e.Index < at || e.Index > h.Last {
				return fmt.Errorf("snapshot: entry %d does not belong into the segment from %d to %d", e.Index, h.First, h.Last)
			}
			at = e.Index + 1
			if _, err := protodelim.MarshalTo(w, &archivepb.Entry{Index: e.Index, Term: e.Term, Data: e.Data}); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && sealed != nil {
		err = sealed(ctx)
	}
	if err != nil {
		return Item{}, err
	}
	return a.create(ctx, h, nil, int64(b.Len()), bytes.NewReader(b.Bytes()))
}

// PutKeyring stores the state of the seal as it is after index h.Last. Errors: as PutSnapshot.
func (a *Archive) PutKeyring(ctx context.Context, h Header, sealState []byte) (Item, error) {
	h.Kind = Keyring
	raw, err := h.encode()
	if err != nil {
		return Item{}, err
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(&archivepb.Keyring{SealState: sealState, Sum: sha256Of(append(bytes.Clone(raw), sealState...))})
	if err != nil {
		return Item{}, err
	}
	raw = append(raw, body...)
	return a.create(ctx, h, sealState, int64(len(raw)), bytes.NewReader(raw))
}

// seal writes header and encrypted body.
func seal(w io.Writer, h Header, c Cipher, write func(io.Writer) error) error {
	raw, err := h.encode()
	if err != nil {
		return err
	}
	if _, err := w.Write(raw); err != nil {
		return err
	}
	body, err := c.Seal(w, context256(raw))
	if err != nil {
		return err
	}
	if err := write(body); err != nil {
		return err
	}
	return body.Close()
}

func (a *Archive) create(ctx context.Context, h Header, body []byte, size int64, content io.ReadSeeker) (Item, error) {
	name := h.name(body)
	item, ok := ParseName(name)
	if !ok {
		return Item{}, fmt.Errorf("%w: %s", ErrFormat, name)
	}
	item.Size = size
	failpoint.Hit(failpoint.SnapshotPutBefore)
	if err := a.bucket.Create(ctx, a.prefix+name, size, content); err != nil {
		return item, fmt.Errorf("%s in %s: %w", name, a, err)
	}
	failpoint.Hit(failpoint.SnapshotPutAfter)
	return item, nil
}

// open opens an object and checks that it is the one that its place says.
func (a *Archive) open(ctx context.Context, item Item) (h Header, raw []byte, body *bufio.Reader, done func(), err error) {
	rc, _, err := a.bucket.Open(ctx, a.prefix+item.Name)
	if err != nil {
		return h, nil, nil, nil, fmt.Errorf("%s in %s: %w", item.Name, a, err)
	}
	body = bufio.NewReaderSize(rc, 256<<10)
	if h, raw, err = readHeader(body); err == nil && !h.fits(item) {
		err = ErrForeign
	}
	if err != nil {
		rc.Close()
		return h, nil, nil, nil, fmt.Errorf("%s in %s: %w", item.Name, a, err)
	}
	return h, raw, body, func() { rc.Close() }, nil
}

// Head reads the header of an object, which only reading all of it proves.
func (a *Archive) Head(ctx context.Context, item Item) (Header, error) {
	h, _, _, done, err := a.open(ctx, item)
	if err == nil {
		done()
	}
	return h, err
}

// ReadSnapshot gives the state of a snapshot to read, which must read all of it. What it read is authentic when
// ReadSnapshot returns nil. Errors: ErrFormat, ErrForeign, ErrDamaged, those of Bucket and of read.
func (a *Archive) ReadSnapshot(ctx context.Context, item Item, c Cipher, read func(Header, io.Reader) error) error {
	return a.readWhole(ctx, item, c, read)
}

// readWhole gives the body of an object to read, which read must read all of.
func (a *Archive) readWhole(ctx context.Context, item Item, c Cipher, read func(Header, io.Reader) error) error {
	h, raw, body, done, err := a.open(ctx, item)
	if err != nil {
		return err
	}
	defer done()
	plain := c.Open(body, context256(raw))
	if err := read(h, plain); err != nil {
		return fmt.Errorf("%s in %s: %w", item.Name, a, err)
	}
	switch n, err := io.Copy(io.Discard, io.LimitReader(plain, 1)); {
	case err != nil:
		return fmt.Errorf("%s in %s: %w", item.Name, a, err)
	case n > 0:
		return fmt.Errorf("%s in %s: %w: it goes on after its end", item.Name, a, ErrFormat)
	}
	return nil
}

// ReadSegment calls each for the entries of a segment, in order. Errors: as ReadSnapshot.
func (a *Archive) ReadSegment(ctx context.Context, item Item, c Cipher, each func(LogEntry) error) (Header, error) {
	h, raw, body, done, err := a.open(ctx, item)
	if err != nil {
		return h, err
	}
	defer done()
	plain := bufio.NewReader(c.Open(body, context256(raw)))
	at := h.First
	for {
		pb := new(archivepb.Entry)
		err := protodelim.UnmarshalOptions{MaxSize: maxEntry}.UnmarshalFrom(plain, pb)
		switch {
		case errors.Is(err, io.EOF):
			return h, nil
		case err != nil:
			err = entryError(err)
		case pb.Index < at || pb.Index > h.Last:
			err = fmt.Errorf("%w: entry %d is out of its order", ErrFormat, pb.Index)
		default:
			at = pb.Index + 1
			err = each(LogEntry{pb.Index, pb.Term, pb.Data})
		}
		if err != nil {
			return h, fmt.Errorf("%s in %s: %w", item.Name, a, err)
		}
	}
}

// entryError tells bytes that are no entry from an error of reading.
func entryError(err error) error {
	var size *protodelim.SizeTooLargeError
	if errors.As(err, &size) || errors.Is(err, proto.Error) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: an entry in it: %w", ErrFormat, err)
	}
	return err
}

// maxKeyring bounds a keyring object.
const maxKeyring = 8 << 20

// ReadKeyring returns the state of the seal. It is undamaged, and not proved: only the root key does that. Errors: ErrFormat, ErrForeign,
// ErrDamaged, those of Bucket.
func (a *Archive) ReadKeyring(ctx context.Context, item Item) (h Header, sealState []byte, err error) {
	h, raw, body, done, err := a.open(ctx, item)
	if err != nil {
		return h, nil, err
	}
	defer done()
	b, err := io.ReadAll(io.LimitReader(body, maxKeyring+1))
	pb := new(archivepb.Keyring)
	switch {
	case err != nil:
	case len(b) > maxKeyring || proto.Unmarshal(b, pb) != nil:
		err = ErrFormat
	case !bytes.Equal(pb.Sum, sha256Of(append(raw, pb.SealState...))) || h.name(pb.SealState) != item.Name:
		err = ErrDamaged
	}
	if err != nil {
		return h, nil, fmt.Errorf("%s in %s: %w", item.Name, a, err)
	}
	return h, pb.SealState, nil
}
