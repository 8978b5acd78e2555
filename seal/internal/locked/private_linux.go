package locked

import "golang.org/x/sys/unix"

// private keeps pages out of forked processes. Nothing in a Go program forks without starting another program at
// once, but a library in C could.
func private(pages []byte) {
	_ = unix.Madvise(pages, unix.MADV_DONTFORK) // refused only where the kernel lacks it
}
