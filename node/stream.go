package node

import (
	"errors"
	"io"

	"github.com/spike-ha/spike-ha/seal"
)

func (k keys) EncryptStream(dst io.Writer) (io.WriteCloser, error) {
	w, err := k.Seal.EncryptStream(dst)
	return sealedWriter{w}, streamError(err)
}

func (k keys) DecryptStream(src io.Reader) (io.Reader, error) {
	r, err := k.Seal.DecryptStream(src)
	return openedReader{r}, streamError(err)
}

type sealedWriter struct{ io.WriteCloser }

func (w sealedWriter) Write(p []byte) (int, error) {
	n, err := w.WriteCloser.Write(p)
	return n, streamError(err)
}

func (w sealedWriter) Close() error { return streamError(w.WriteCloser.Close()) }

type openedReader struct{ io.Reader }

func (r openedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	return n, streamError(err)
}

// streamError says in the door's words what the seal said, and leaves alone what came from the other side of a stream.
func streamError(err error) error {
	switch {
	case errors.Is(err, seal.ErrOpen):
		return errUnopened
	case errors.Is(err, seal.ErrSealed), errors.Is(err, seal.ErrTooLarge):
		return keyError(err)
	}
	return err
}
