package devcluster

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spike-ha/spike-ha/identity/devca"
	"github.com/spike-ha/spike-ha/internal/process"
)

func (s *Supervisor) startAuthority(ctx context.Context) (err error) {
	if err := os.MkdirAll(s.shape.Sockets, 0o700); err != nil {
		return err
	}
	s.log, err = os.OpenFile(s.home.path("logs", "authority.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	s.authority, err = devca.Serve(context.WithoutCancel(ctx), devca.Options{Dir: s.shape.Sockets, TrustDomain: TrustDomain,
		CAFile: s.home.path("development-authority.pem"), Logger: slog.New(slog.NewTextHandler(s.log, nil))})
	if err != nil {
		return err
	}
	for _, path := range s.shape.Identities {
		if _, err := s.authority.Add(path); err != nil {
			return err
		}
	}
	return nil
}

// plan makes the children: Keepers first, as they are started.
func (s *Supervisor) plan() error {
	var peers, keepers []string
	for i := 1; i <= s.shape.Peers; i++ {
		peers = append(peers, fmt.Sprintf("nexus-%d=%s", i, s.shape.address(i, portPeer)))
	}
	for i := 1; i <= s.shape.Keepers; i++ {
		keepers = append(keepers, fmt.Sprintf("keeper-%d=https://%s", i, s.shape.address(i, portKeeper)))
	}
	for i := 1; i <= s.shape.Keepers; i++ {
		name := fmt.Sprintf("keeper-%d", i)
		c, err := s.child("keeper", name, "https://"+s.shape.address(i, portKeeper),
			"--id", name, "--listen", s.shape.address(i, portKeeper), "--trust-domain", TrustDomain, "--socket")
		if err != nil {
			return err
		}
		s.keepers = append(s.keepers, c)
	}
	for i := 1; i <= s.shape.Peers; i++ {
		name := fmt.Sprintf("nexus-%d", i)
		c, err := s.child("nexus", name, s.shape.API(i),
			"--id", name, "--data-dir", s.home.path("data", name), "--listen", s.shape.address(i, portAPI),
			"--peer-listen", s.shape.address(i, portPeer), "--metrics-listen", s.shape.address(i, portMetrics),
			"--peers", strings.Join(peers, ","), "--keepers", strings.Join(keepers, ","),
			"--archive", "file://"+s.home.path("archive"),
			"--trust-root", TrustDomain, "--drain-grace", "0s", // no balancer is to notice anything
			"--endpoint-socket")
		if err != nil {
			return err
		}
		if err := os.MkdirAll(s.home.path("data", name), 0o700); err != nil {
			return err
		}
		s.peers = append(s.peers, c)
	}
	return nil
}

// child makes one; the last of its arguments is left open for its socket.
func (s *Supervisor) child(program, name, address string, args ...string) (*process.Child, error) {
	socket, err := s.authority.Add("/spike/" + program + "/" + name)
	if err != nil {
		return nil, err
	}
	return &process.Child{Name: name, Address: address, Binary: filepath.Join(s.options.Binaries, program), Args: append(args, socket),
		LogFile: s.home.path("logs", name+".log"), Spawner: s.spawn, Changed: s.record, Died: s.mourn}, nil
}
