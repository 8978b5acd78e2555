package process

import (
	"errors"
	"os"
	"runtime"
	"strings"
)

// Spawner starts processes from one thread that lives as long as it does: the
// kernel takes the end of the thread that started a child for the end of its
// parent (prctl(2), PR_SET_PDEATHSIG).
type Spawner struct {
	requests chan spawnRequest
	done     chan struct{}
}

type spawnRequest struct {
	do     func() error
	answer chan error
}

// NewSpawner makes one; it must be closed.
func NewSpawner() *Spawner {
	s := &Spawner{make(chan spawnRequest), make(chan struct{})}
	go func() {
		runtime.LockOSThread()
		for {
			select {
			case r := <-s.requests:
				r.answer <- r.do()
			case <-s.done:
				return // and with it the thread
			}
		}
	}()
	return s
}

// Do runs do on the thread that children are started from, and returns what it
// returns. What do changes of the thread, such as its namespaces, the children
// started after it inherit; it ends with the thread.
func (s *Spawner) Do(do func() error) error {
	answer := make(chan error, 1)
	select {
	case s.requests <- spawnRequest{do, answer}:
		return <-answer
	case <-s.done:
		return errors.New("the spawner is closed")
	}
}

// Close ends the thread, and with it every child that still runs.
func (s *Spawner) Close() { close(s.done) }

// CleanEnvironment is this process's without the settings of SPIKE and SPIFFE: those of
// the user's shell are for clients, and the processes are told all by flags.
func CleanEnvironment() (list []string) {
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "SPIKE_") && !strings.HasPrefix(v, "SPIFFE_") {
			list = append(list, v)
		}
	}
	return list
}
