//go:build minio

package s3server

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
)

const module, program = "minio", "minio"

func (s *Server) command(path, dir, cert, key string) (*exec.Cmd, error) {
	certs := filepath.Join(dir, "certs")
	if err := errors.Join(os.MkdirAll(certs, 0o700), copyFile(filepath.Join(certs, "public.crt"), cert), copyFile(filepath.Join(certs, "private.key"), key)); err != nil {
		return nil, err
	}
	cmd := exec.Command(path, "server", "--quiet", "--address", s.Address, "--console-address", "127.0.0.1:0", "--certs-dir", certs, s.Data)
	cmd.Env = append(os.Environ(), "MINIO_ROOT_USER="+s.Access, "MINIO_ROOT_PASSWORD="+s.Secret, "MINIO_BROWSER=off", "MINIO_UPDATE=off", "MINIO_CI_CD=1", "HOME="+dir)
	return cmd, nil
}

func copyFile(to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}
