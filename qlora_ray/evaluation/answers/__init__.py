"""What models answered: files, statistics, and the page that shows both."""
